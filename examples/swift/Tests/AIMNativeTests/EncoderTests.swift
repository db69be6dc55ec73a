import AIMNative
import GoldenSupport
import XCTest

final class EncoderTests: XCTestCase {
    func testPhotosGiveTheVectorsThatPythonGives() throws {
        let encoder = try Encoder(folder: Golden.folder)
        let photos = try Golden.read().photos
        let vectors = try encoder.embed(photos.map(\.image))
        for (vector, photo) in zip(vectors, photos) {
            XCTAssertEqual(vector.count, photo.embedding.count)
            for (value, expected) in zip(vector, photo.embedding) {
                // float32 rounding on vectors of length 1; a GPU may multiply in TF32.
                XCTAssertEqual(value, expected, accuracy: 1e-3)
            }
        }
    }

    func testAFolderOfAnotherFormatIsRefused() throws {
        let name = UUID().uuidString
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(name)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try Data("{\"model_type\": \"aimv2\"}".utf8)
            .write(to: folder.appendingPathComponent("config.json"))
        XCTAssertThrowsError(try Encoder(folder: folder)) { error in
            XCTAssert(error is ModelError)
        }
    }
}
