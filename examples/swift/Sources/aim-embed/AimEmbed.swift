import AIMGraphs
import AIMNative
import AIMPhotos
import AIMPython
import Foundation

/// A line for each photo: its path, and the numbers of its vector.
@main
struct AimEmbed {
    static let usage = """
        usage: aim-embed MODEL PHOTO...
        MODEL is an .aimodel, an .mlpackage or a model folder of aim-mlx. With PYTHON_LIBRARY (the
        path of libpython) and PYTHON_PACKAGES (a folder with aim_mlx) set, Python runs the model.
        """

    static func main() async {
        let files = CommandLine.arguments.dropFirst().map { URL(fileURLWithPath: $0) }
        guard let model = files.first, files.count > 1 else {
            FileHandle.standardError.write(Data("\(usage)\n".utf8))
            exit(2)
        }
        do {
            let photos = Array(files.dropFirst())
            let environment = ProcessInfo.processInfo.environment
            if let library = environment["PYTHON_LIBRARY"],
                let packages = environment["PYTHON_PACKAGES"]
            {
                try await embedInPython(model, photos, library: library, packages: packages)
            } else {
                try await embed(model, photos)
            }
        } catch {
            FileHandle.standardError.write(Data("\(error.localizedDescription)\n".utf8))
            exit(1)
        }
    }

    static func embed(_ model: URL, _ photos: [URL]) async throws {
        #if canImport(ImageIO)
        switch model.pathExtension {
        case "aimodel":
            #if canImport(CoreAI)
            if #available(macOS 27.0, iOS 27.0, *) {
                let embedder = try await CoreAIEmbedder(contentsOf: model)
                for photo in photos {
                    show(photo, try await embedder.embed(RGBImage(contentsOf: photo)))
                }
                return
            }
            #endif
            throw Failure(errorDescription: "an .aimodel needs Xcode 27, and macOS 27 or iOS 27")
        case "mlpackage", "mlmodelc":
            let embedder = try await CoreMLEmbedder(contentsOf: model)
            for photo in photos {
                show(photo, try await embedder.embed(RGBImage(contentsOf: photo)))
            }
        default:
            let encoder = try Encoder(folder: model)
            for photo in photos {
                show(photo, try encoder.embed([RGBImage(contentsOf: photo)])[0])
            }
        }
        #else
        throw Failure(errorDescription: "only Python can read photos here: set PYTHON_LIBRARY")
        #endif
    }

    static func embedInPython(
        _ model: URL, _ photos: [URL], library: String, packages: String
    ) async throws {
        #if canImport(PythonKit)
        try await PythonEmbedder.startPython(library: library, packages: packages)
        let embedder = try await PythonEmbedder(model: model.path)
        for photo in photos {
            show(photo, try await embedder.embed(files: [photo]).values)
        }
        #else
        throw Failure(errorDescription: "PythonKit does not run here")
        #endif
    }

    static func show(_ photo: URL, _ vector: [Float]) {
        print(photo.path, vector.map { String($0) }.joined(separator: " "), separator: "\t")
    }
}

struct Failure: LocalizedError {
    let errorDescription: String?
}
