#if canImport(ImageIO)
import CoreGraphics
import Foundation
import ImageIO

public struct PhotoError: LocalizedError {
    public let errorDescription: String?
}

extension RGBImage {
    /// The first image of a file: upright, transparency on white, as `aim-mlx` reads it.
    public init(contentsOf file: URL) throws {
        guard let source = CGImageSourceCreateWithURL(file as CFURL, nil),
            let image = CGImageSourceCreateImageAtIndex(source, 0, nil),
            CGImageSourceGetStatusAtIndex(source, 0) == .statusComplete
        else {
            throw PhotoError(errorDescription: "\(file.path) is not an image, or not a whole one")
        }
        let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any]
        let orientation = properties?[kCGImagePropertyOrientation] as? Int ?? 1
        self = try RGBImage(image).upright(orientation: orientation)
    }

    /// The pixels as they are stored: in the image's own colour space where that is RGB, as
    /// `aim-mlx` converts no colour profile; in sRGB where it is grey or CMYK.
    public init(_ image: CGImage) throws {
        let (width, height) = (image.width, image.height)
        var space = CGColorSpace(name: CGColorSpace.sRGB)
        if let own = image.colorSpace, own.model == .rgb, own.supportsOutput { space = own }
        var rgba = [UInt8](repeating: 0, count: 4 * width * height)
        let drawn = rgba.withUnsafeMutableBytes { memory in
            guard let space,
                let context = CGContext(
                    data: memory.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: 4 * width, space: space,
                    bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            let all = CGRect(x: 0, y: 0, width: width, height: height)
            context.setFillColor(CGColor(gray: 1, alpha: 1))
            context.fill(all)
            context.interpolationQuality = .none
            context.draw(image, in: all)
            return true
        }
        if !drawn { throw PhotoError(errorDescription: "the image has no bitmap in RGB") }
        let bytes = [UInt8](unsafeUninitializedCapacity: 3 * width * height) { target, count in
            for pixel in 0..<width * height {
                for channel in 0..<3 {
                    target[3 * pixel + channel] = rgba[4 * pixel + channel]
                }
            }
            count = target.count
        }
        self.init(width: width, height: height, bytes: bytes)
    }
}
#endif
