#if canImport(CoreML)
import AIMPhotos
import CoreML
import CoreVideo
import Foundation

/// An .mlpackage that `aim-mlx export-model MODEL OUT.mlpackage` wrote, for one photo at a time,
/// with an array or an image as its input; or the .mlmodelc that Xcode makes of it.
public final class CoreMLEmbedder {
    private let model: MLModel
    private let preprocessing: Preprocessing

    public init(contentsOf file: URL) async throws {
        var compiled = file
        if file.pathExtension == "mlpackage" {
            // Into a temporary folder: an app compiles once and keeps it, or leaves it to Xcode.
            compiled = try await MLModel.compileModel(at: file)
        }
        model = try await MLModel.load(contentsOf: compiled, configuration: MLModelConfiguration())
        let said = model.modelDescription.metadata[.creatorDefinedKey] as? [String: String]
        guard let json = said?[GraphNames.preprocessing] else {
            throw GraphError("the model does not say how it wants photos resized and cut")
        }
        preprocessing = try Preprocessing.decoded(Data(json.utf8))
    }

    /// A vector of length 1.
    public func embed(_ photo: RGBImage) async throws -> [Float] {
        let value = try input(photo.prepared(preprocessing))
        let inputs = try MLDictionaryFeatureProvider(dictionary: [GraphNames.input: value])
        let outputs = try await model.prediction(from: inputs)
        guard let vector = outputs.featureValue(for: GraphNames.output)?.multiArrayValue else {
            throw GraphError("the model gave no \(GraphNames.output)")
        }
        return MLShapedArray<Float>(vector).scalars
    }

    private func input(_ pixels: RGBImage) throws -> MLFeatureValue {
        let described = model.modelDescription.inputDescriptionsByName[GraphNames.input]
        if described?.type == .image {
            return MLFeatureValue(pixelBuffer: try pixelBuffer(pixels))
        }
        let shape = [1, pixels.height, pixels.width, 3]
        let values = pixels.bytes.map(Float.init)
        return MLFeatureValue(shapedArray: MLShapedArray<Float>(scalars: values, shape: shape))
    }

    private func pixelBuffer(_ pixels: RGBImage) throws -> CVPixelBuffer {
        var created: CVPixelBuffer?
        CVPixelBufferCreate(
            nil, pixels.width, pixels.height, kCVPixelFormatType_32BGRA, nil, &created)
        guard let buffer = created else { throw GraphError("no memory for the photo") }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else {
            throw GraphError("no memory for the photo")
        }
        for y in 0..<pixels.height {
            let row = base + y * CVPixelBufferGetBytesPerRow(buffer)
            for x in 0..<pixels.width {
                let from = 3 * (y * pixels.width + x)
                for channel in 0..<3 {
                    let value = pixels.bytes[from + 2 - channel]
                    row.storeBytes(of: value, toByteOffset: 4 * x + channel, as: UInt8.self)
                }
                row.storeBytes(of: 255, toByteOffset: 4 * x + 3, as: UInt8.self)
            }
        }
        return buffer
    }
}
#endif
