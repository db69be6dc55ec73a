import AIMPhotos
import Foundation
import MLX
import MLXNN

/// A model folder of aim-mlx (`aim-mlx convert MODEL FOLDER`), read unchanged.
///
/// MLX's arrays belong to one task at a time: keep an encoder inside an actor.
public final class Encoder {
    public let preprocessing: Preprocessing
    private let network: VisionEncoder
    private let mean: MLXArray
    private let std: MLXArray

    public init(folder: URL) throws {
        let json = try Data(contentsOf: folder.appendingPathComponent("config.json"))
        let header = try decoded(Header.self, json)
        guard header.format == "aim-mlx", header.formatVersion == 1, header.kind == "vision" else {
            let got = "\(header.kind ?? "no kind") of \(header.format ?? "another format")"
            throw ModelError("expected a vision encoder of aim-mlx, got \(got)")
        }
        if header.quantization != nil || header.encoder?.imageSize == nil {
            throw ModelError("expected a model for images of one size that is not quantised")
        }
        let config = try decoded(Config.self, json)
        preprocessing = config.preprocessing.pixels
        mean = MLXArray(config.preprocessing.values.mean)
        std = MLXArray(config.preprocessing.values.std)
        network = VisionEncoder(config.encoder)
        try load(folder.appendingPathComponent("model.safetensors"))
    }

    /// One vector of length 1 for each photo: what `encoder.embed` gives in Python.
    public func embed(_ photos: [RGBImage]) throws -> [[Float]] {
        if photos.isEmpty { return [] }
        let size = preprocessing.cropSize
        let bytes = photos.flatMap { $0.prepared(preprocessing).bytes }
        // Without it an error of MLX, such as too little memory, would end the app.
        let flat = try withError { error in
            let vectors = vectors(MLXArray(bytes, [photos.count, size, size, 3]))
            eval(vectors)
            try error.check()
            return vectors.asArray(Float.self)
        }
        let length = flat.count / photos.count
        return photos.indices.map { Array(flat[$0 * length..<($0 + 1) * length]) }
    }

    /// RGB from 0 to 255 (B, S, S, 3) -> (B, D), not yet computed.
    private func vectors(_ rgb: MLXArray) -> MLXArray {
        let pixels = (rgb.asType(.float32) / 255 - mean) / std
        let tokens = network(pixels.asType(network.preprocessor.positions.dtype))
        let means = tokens.asType(.float32).mean(axis: 1)
        return means / means.square().sum(axis: -1, keepDims: true).sqrt()
    }

    private func load(_ file: URL) throws {
        let tensors = try loadArrays(url: file)
        // A folder with more blocks than its config.json says would pass the check of `update`.
        let expected = Set(network.parameters().flattened().map(\.0))
        if let name = expected.symmetricDifference(tensors.keys).min() {
            throw ModelError("\(name) is not in both config.json and \(file.path)")
        }
        try network.update(parameters: ModuleParameters.unflattened(tensors), verify: .all)
        eval(network)
    }
}

public struct ModelError: LocalizedError {
    public let errorDescription: String?

    init(_ message: String) {
        errorDescription = message
    }
}

/// What is looked at first in config.json, to say what a folder is instead of what it lacks.
private struct Header: Decodable {
    struct Quantization: Decodable {}

    struct Size: Decodable {
        let imageSize: Int?
    }

    let format: String?
    let formatVersion: Int?
    let kind: String?
    let quantization: Quantization?
    let encoder: Size?
}

private struct Config: Decodable {
    let encoder: VisionSizes
    let preprocessing: Preprocessed
}

private struct Preprocessed: Decodable {
    struct Values: Decodable {
        let mean: [Float]
        let std: [Float]
    }

    let pixels: Preprocessing
    let values: Values

    init(from decoder: Decoder) throws {
        pixels = try Preprocessing(from: decoder)
        values = try Values(from: decoder)
    }
}

private func decoded<T: Decodable>(_ type: T.Type, _ json: Data) throws -> T {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return try decoder.decode(type, from: json)
}
