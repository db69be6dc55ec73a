import Foundation

/// What `aim-mlx export-model` calls things in the files that it writes.
enum GraphNames {
    static let function = "main"
    static let input = "image"
    static let output = "embedding"
    static let preprocessing = "preprocessing"  // in the metadata
}

public struct GraphError: LocalizedError {
    public let errorDescription: String?

    init(_ message: String) {
        errorDescription = message
    }
}
