import AIMPhotos
import GoldenSupport
import XCTest

final class RGBImageTests: XCTestCase {
    func testPhotosAreResizedAndCutBitForBitAsInPython() throws {
        let preprocessing = Preprocessing(shortestEdge: 42, cropSize: 42, cropRounding: .floor)
        for photo in try Golden.read().photos {
            let pixels = photo.image.prepared(preprocessing)
            XCTAssertEqual(pixels.bytes, [UInt8](photo.pixels))
        }
    }

    #if canImport(ImageIO)
    func testAPhotoIsReadWithoutLoss() throws {
        let file = Golden.folder.appendingPathComponent("photo.png")
        XCTAssertEqual(try RGBImage(contentsOf: file), try Golden.read().photos[0].image)
    }
    #endif

    func testAnOrientationTurnsOrMirrorsThePhoto() {
        // a b c
        // d e f
        let stored = RGBImage(
            width: 3, height: 2,
            bytes: "abcdef".flatMap { letter in
                [UInt8](repeating: letter.asciiValue!, count: 3)
            })
        let expected = [
            1: "abcdef", 2: "cbafed", 3: "fedcba", 4: "defabc",
            5: "adbecf", 6: "daebfc", 7: "fcebda", 8: "cfbead",
        ]
        for (orientation, letters) in expected {
            let upright = stored.upright(orientation: orientation)
            XCTAssertEqual(upright.width, orientation < 5 ? 3 : 2)
            let seen = stride(from: 0, to: upright.bytes.count, by: 3).map {
                Character(UnicodeScalar(upright.bytes[$0]))
            }
            XCTAssertEqual(String(seen), letters, "orientation \(orientation)")
        }
    }
}
