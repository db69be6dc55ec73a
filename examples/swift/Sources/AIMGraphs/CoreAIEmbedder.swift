#if canImport(CoreAI)
import AIMPhotos
import CoreAI
import Foundation

/// An .aimodel that `aim-mlx export-model MODEL OUT.aimodel` wrote, for one photo at a time.
@available(macOS 27.0, iOS 27.0, *)
public struct CoreAIEmbedder: Sendable {
    private let function: InferenceFunction
    private let preprocessing: Preprocessing

    /// The first load on a device compiles the model for it, which may take a while.
    public init(contentsOf file: URL) async throws {
        preprocessing = try Self.preprocessing(of: AIModelAsset(contentsOf: file))
        let model = try await AIModel(contentsOf: file)
        guard let function = try model.loadFunction(named: GraphNames.function),
            function.descriptor.outputNames.contains(GraphNames.output)
        else {
            throw GraphError("\(file.path) does not embed one photo at a time")
        }
        self.function = function
    }

    /// A vector of length 1.
    public func embed(_ photo: RGBImage) async throws -> [Float] {
        let size = preprocessing.cropSize
        let bytes = photo.prepared(preprocessing).bytes
        let input = NDArray(scalars: bytes, shape: [1, size, size, 3])
        var outputs = try await function.run(inputs: [GraphNames.input: input])
        guard let output = outputs.remove(GraphNames.output)?.ndArray else {
            throw GraphError("the model gave no \(GraphNames.output)")
        }
        let length = output.shape[1]
        return output.view(as: Float.self).withUnsafePointer { values, _, strides in
            var vector = [Float]()
            for i in 0..<length { vector.append(values[i * strides[1]]) }
            return vector
        }
    }

    private static func preprocessing(of asset: AIModelAsset) throws -> Preprocessing {
        let said = asset.metadata.creatorDefinedMetadata[GraphNames.preprocessing]
        guard case .dictionary(let values)? = said,
            values["fit"] == nil,  // squashed or padded, which is not written here
            case .integer(let edge)? = values["shortest_edge"],
            case .integer(let size)? = values["crop_size"],
            case .string(let name)? = values["crop_rounding"],
            let rounding = Preprocessing.CropRounding(rawValue: name)
        else {
            throw GraphError("the model does not say how it wants photos resized and cut")
        }
        return Preprocessing(shortestEdge: edge, cropSize: size, cropRounding: rounding)
    }
}
#endif
