import AIMPhotos
import Foundation

/// What golden.py wrote to Golden/.
public struct Golden: Decodable {
    public struct Photo: Decodable {
        public let height: Int
        public let width: Int
        public let photo: Data
        public let pixels: Data
        public let embedding: [Float]

        public var image: RGBImage {
            RGBImage(width: width, height: height, bytes: [UInt8](photo))
        }
    }

    public let photos: [Photo]

    /// The model folder, with golden.json in it.
    public static let folder = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Golden")

    public static func read() throws -> Golden {
        let json = try Data(contentsOf: folder.appendingPathComponent("golden.json"))
        return try JSONDecoder().decode(Golden.self, from: json)
    }
}
