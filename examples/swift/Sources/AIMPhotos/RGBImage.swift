import Foundation

/// 8-bit RGB pixels, row by row from the top.
public struct RGBImage: Equatable, Sendable {
    public let width: Int
    public let height: Int
    /// Red, green and blue of each pixel: 3 * width * height bytes.
    public let bytes: [UInt8]

    public init(width: Int, height: Int, bytes: [UInt8]) {
        precondition(width > 0 && height > 0 && bytes.count == 3 * width * height)
        self.width = width
        self.height = height
        self.bytes = bytes
    }

    /// The image as it is meant to be seen, by its file's EXIF orientation (1 to 8).
    public func upright(orientation: Int) -> RGBImage {
        guard (2...8).contains(orientation) else { return self }
        let turned = orientation >= 5
        let fromRight = [2, 3, 7, 8].contains(orientation)
        let fromBottom = [3, 4, 6, 7].contains(orientation)
        let (newWidth, newHeight) = turned ? (height, width) : (width, height)
        var result = [UInt8]()
        result.reserveCapacity(bytes.count)
        for y in 0..<newHeight {
            for x in 0..<newWidth {
                let (column, row) = turned ? (y, x) : (x, y)
                let storedColumn = fromRight ? width - 1 - column : column
                let storedRow = fromBottom ? height - 1 - row : row
                let start = 3 * (storedRow * width + storedColumn)
                result.append(contentsOf: bytes[start..<start + 3])
            }
        }
        return RGBImage(width: newWidth, height: newHeight, bytes: result)
    }

    /// What a model sees of the image: its shortest edge resized, and the centre cut out.
    public func prepared(_ preprocessing: Preprocessing) -> RGBImage {
        let edge = preprocessing.shortestEdge
        let long = Int(Double(edge * max(width, height)) / Double(min(width, height)))
        let landscape = width >= height
        let resized = resized(width: landscape ? long : edge, height: landscape ? edge : long)
        return resized.centre(preprocessing.cropSize, rounding: preprocessing.cropRounding)
    }

    private func centre(_ size: Int, rounding: Preprocessing.CropRounding) -> RGBImage {
        let rule: FloatingPointRoundingRule = rounding == .floor ? .down : .toNearestOrEven
        let left = Int((Double(width - size) / 2).rounded(rule))
        let top = Int((Double(height - size) / 2).rounded(rule))
        var result = [UInt8]()
        result.reserveCapacity(3 * size * size)
        for y in top..<top + size {
            let start = 3 * (y * width + left)
            result.append(contentsOf: bytes[start..<start + 3 * size])
        }
        return RGBImage(width: size, height: size, bytes: result)
    }
}

/// The part of `preprocessing` in a model folder's config.json that decides which pixels it sees;
/// decoded with `convertFromSnakeCase`.
public struct Preprocessing: Decodable, Equatable, Sendable {
    public enum CropRounding: String, Decodable, Sendable {
        case floor
        case halfEven = "half_even"
    }

    public let shortestEdge: Int
    public let cropSize: Int
    public let cropRounding: CropRounding

    public init(shortestEdge: Int, cropSize: Int, cropRounding: CropRounding) {
        self.shortestEdge = shortestEdge
        self.cropSize = cropSize
        self.cropRounding = cropRounding
    }

    /// From JSON with the names that aim-mlx writes.
    public static func decoded(_ json: Data) throws -> Preprocessing {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(Preprocessing.self, from: json)
    }
}
