import Foundation

// Bicubic resizing with antialiasing, bit for bit as Pillow 13 does it: coefficients of 22 bits,
// each pass rounded to 8 bits. The algorithm is that of Pillow's src/libImaging/Resample.c.

extension RGBImage {
    public func resized(width newWidth: Int, height newHeight: Int) -> RGBImage {
        // Pillow makes an image lower first where that saves much.
        let losesMoreHeight = height - newHeight > 2 * (width - newWidth)
        if newHeight < height && losesMoreHeight {
            return withHeight(newHeight).withWidth(newWidth)
        }
        return withWidth(newWidth).withHeight(newHeight)
    }

    private func withWidth(_ newWidth: Int) -> RGBImage {
        if newWidth == width { return self }
        let sums = weightedSums(from: width, to: newWidth)
        let result = bytes.withUnsafeBufferPointer { source in
            [UInt8](unsafeUninitializedCapacity: 3 * newWidth * height) { target, count in
                for y in 0..<height {
                    for (x, sum) in sums.enumerated() {
                        var (red, green, blue) = (half, half, half)
                        var at = 3 * (y * width + sum.first)
                        for weight in sum.weights {
                            red &+= weight &* Int32(source[at])
                            green &+= weight &* Int32(source[at + 1])
                            blue &+= weight &* Int32(source[at + 2])
                            at += 3
                        }
                        let to = 3 * (y * newWidth + x)
                        target[to] = rounded(red)
                        target[to + 1] = rounded(green)
                        target[to + 2] = rounded(blue)
                    }
                }
                count = target.count
            }
        }
        return RGBImage(width: newWidth, height: height, bytes: result)
    }

    private func withHeight(_ newHeight: Int) -> RGBImage {
        if newHeight == height { return self }
        let rowBytes = 3 * width
        var result = [UInt8]()
        result.reserveCapacity(rowBytes * newHeight)
        bytes.withUnsafeBufferPointer { source in
            for sum in weightedSums(from: height, to: newHeight) {
                var row = [Int32](repeating: half, count: rowBytes)
                var start = sum.first * rowBytes
                for weight in sum.weights {
                    for i in 0..<rowBytes {
                        row[i] &+= weight &* Int32(source[start + i])
                    }
                    start += rowBytes
                }
                result.append(contentsOf: row.map(rounded))
            }
        }
        return RGBImage(width: width, height: newHeight, bytes: result)
    }
}

/// A new pixel: the sum of old ones, from `first` on, each with its weight.
private struct WeightedSum {
    let first: Int
    let weights: [Int32]
}

private let bits: Int32 = 22
private let half: Int32 = 1 << (bits - 1)

private func rounded(_ sum: Int32) -> UInt8 {
    UInt8(max(0, min(255, sum >> bits)))
}

private func weightedSums(from old: Int, to new: Int) -> [WeightedSum] {
    let scale = Double(old) / Double(new)
    // Where the image is made smaller the filter grows, so that every old pixel counts.
    let stretch = max(scale, 1)
    let support = 2 * stretch
    return (0..<new).map { position in
        let centre = (Double(position) + 0.5) * scale
        let first = max(0, Int(centre - support + 0.5))
        let end = min(old, Int(centre + support + 0.5))
        let weights = (first..<end).map { bicubic((Double($0) - centre + 0.5) * (1 / stretch)) }
        let total = weights.reduce(0, +)
        let whole = weights.map { Int32(($0 / total * Double(1 << bits)).rounded()) }
        return WeightedSum(first: first, weights: whole)
    }
}

/// The cubic kernel with a = -0.5.
private func bicubic(_ offset: Double) -> Double {
    let x = abs(offset)
    if x < 1 { return (1.5 * x - 2.5) * x * x + 1 }
    if x < 2 { return (((x - 5) * x + 8) * x - 4) * -0.5 }
    return 0
}
