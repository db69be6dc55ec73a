#if canImport(PythonKit)
import Foundation
import PythonKit

/// `aim_mlx.Embedder`: models in every format that aim-mlx reads, LiT's text tower too.
///
/// Calls wait for each other. Ask for a few photos at a time, and look between two calls whether
/// they are still wanted: PythonKit has no way into a call that runs.
public final class PythonEmbedder: Sendable {
    /// `values` has `shape` (rows, columns), row after row. The rows of `skipped` photos are NaN.
    public struct Answer: Sendable {
        public let shape: [Int]
        public let values: [Float]
        public let skipped: [Int]
        public let notes: [String]
    }

    public struct Failure: LocalizedError {
        public let kind: String
        public let errorDescription: String?
    }

    private let embedder: Held

    /// Call it once, before all else, with the Python that the app ships and the folder that
    /// `pip install --target` filled.
    public static func startPython(library: String, packages: String) async throws {
        try await PythonThread.shared.run {
            PythonLibrary.useLibrary(at: library)
            let sys = try Python.attemptImport("sys")
            try sys.path.insert.throwing.dynamicallyCall(withArguments: 0, packages)
        }
    }

    public init(model: String) async throws {
        embedder = try await PythonThread.shared.run {
            let package = try Python.attemptImport("aim_mlx")
            return Held(try package.Embedder.throwing.dynamicallyCall(withArguments: model))
        }
    }

    public func embed(files: [URL]) async throws -> Answer {
        let paths = files.map(\.path)
        return try await answer("embed_files") { [paths] }
    }

    /// The bytes of an image file.
    public func embed(_ file: Data) async throws -> Answer {
        try await answer("embed_bytes") { [PythonBytes(file)] }
    }

    /// height * width * 3 bytes, upright.
    public func embed(rgb: [UInt8], height: Int, width: Int) async throws -> Answer {
        try await answer("embed_rgb") { [PythonBytes(rgb), height, width] }
    }

    public func embed(texts: [String]) async throws -> Answer {
        try await answer("embed_text") { [texts] }
    }

    /// Gives the model's memory back; the next call loads it again.
    public func release() async throws {
        _ = try await answer("release") { [] }
    }

    private func answer(
        _ method: String, _ arguments: @escaping @Sendable () -> [any PythonConvertible]
    ) async throws -> Answer {
        try await PythonThread.shared.run { [embedder] in
            guard let object = embedder.object else { preconditionFailure("used after its end") }
            let result = try object[dynamicMember: method].throwing
                .dynamicallyCall(withArguments: arguments())
            let kind = String(result["kind"]) ?? "internal"
            guard Bool(result["ok"]) == true || kind == "skipped" else {
                throw Failure(kind: kind, errorDescription: String(result["error"]))
            }
            return Answer(
                shape: [Int](result["shape"]) ?? [],
                values: [Float](numpy: result["values"]) ?? [],
                skipped: result["skipped"].compactMap { Int($0["index"]) },
                notes: [String](result["notes"]) ?? [])
        }
    }

    deinit {
        PythonThread.shared.append { [embedder] in embedder.object = nil }
    }
}

/// A Python object between calls: only Python's thread may touch it, or let go of it.
private final class Held: @unchecked Sendable {
    var object: PythonObject?

    init(_ object: PythonObject) {
        self.object = object
    }
}
#endif
