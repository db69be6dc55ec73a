import MLX
import MLXNN

// The AIMv2 vision encoder for square images of one size (arXiv 2411.14402). Its properties are
// named, or keyed, as the tensors in a model folder of aim-mlx, so that those load unchanged.

/// `encoder` in a model folder's config.json.
struct VisionSizes: Decodable {
    let embedDim: Int
    let mlpHiddenDim: Int
    let numBlocks: Int
    let numHeads: Int
    let patchSize: Int
    let imageSize: Int
    let rmsNormEps: Float
}

final class Attention: Module {
    let heads: Int
    let qkv: Linear
    let proj: Linear

    init(_ sizes: VisionSizes) {
        heads = sizes.numHeads
        qkv = Linear(sizes.embedDim, 3 * sizes.embedDim, bias: false)
        proj = Linear(sizes.embedDim, sizes.embedDim, bias: false)
    }

    /// (B, N, D) -> (B, N, D)
    func callAsFunction(_ x: MLXArray) -> MLXArray {
        let (B, N, D) = (x.dim(0), x.dim(1), x.dim(2))
        let headDim = D / heads
        let parts = qkv(x).reshaped(B, N, 3, heads, headDim).transposed(2, 0, 3, 1, 4)
        let attended = MLXFast.scaledDotProductAttention(
            queries: parts[0], keys: parts[1], values: parts[2],
            scale: 1 / Float(headDim).squareRoot(), mask: nil)
        return proj(attended.transposed(0, 2, 1, 3).reshaped(B, N, D))
    }
}

final class SwiGLU: Module {
    let fc1: Linear
    let fc2: Linear
    let fc3: Linear

    init(_ sizes: VisionSizes) {
        fc1 = Linear(sizes.embedDim, sizes.mlpHiddenDim, bias: false)
        fc2 = Linear(sizes.mlpHiddenDim, sizes.embedDim, bias: false)
        fc3 = Linear(sizes.embedDim, sizes.mlpHiddenDim, bias: false)
    }

    func callAsFunction(_ x: MLXArray) -> MLXArray {
        fc2(silu(fc1(x)) * fc3(x))
    }
}

final class Block: Module {
    @ModuleInfo(key: "norm_1") var norm1: RMSNorm
    let attn: Attention
    @ModuleInfo(key: "norm_2") var norm2: RMSNorm
    let mlp: SwiGLU

    init(_ sizes: VisionSizes) {
        attn = Attention(sizes)
        mlp = SwiGLU(sizes)
        super.init()
        _norm1.wrappedValue = RMSNorm(dimensions: sizes.embedDim, eps: sizes.rmsNormEps)
        _norm2.wrappedValue = RMSNorm(dimensions: sizes.embedDim, eps: sizes.rmsNormEps)
    }

    func callAsFunction(_ input: MLXArray) -> MLXArray {
        let x = input + attn(norm1(input))
        return x + mlp(norm2(x))
    }
}

final class Trunk: Module {
    let blocks: [Block]
    @ModuleInfo(key: "post_trunk_norm") var norm: RMSNorm

    init(_ sizes: VisionSizes) {
        blocks = (0..<sizes.numBlocks).map { _ in Block(sizes) }
        super.init()
        _norm.wrappedValue = RMSNorm(dimensions: sizes.embedDim, eps: sizes.rmsNormEps)
    }

    func callAsFunction(_ tokens: MLXArray) -> MLXArray {
        norm(blocks.reduce(tokens) { x, block in block(x) })
    }
}

final class Patchifier: Module {
    let proj: Conv2d
    let norm: RMSNorm

    init(_ sizes: VisionSizes) {
        proj = Conv2d(
            inputChannels: 3, outputChannels: sizes.embedDim,
            kernelSize: IntOrPair(sizes.patchSize), stride: IntOrPair(sizes.patchSize))
        norm = RMSNorm(dimensions: sizes.embedDim, eps: sizes.rmsNormEps)
    }

    /// (B, S, S, 3) -> (B, N, D), the patches row by row
    func callAsFunction(_ pixels: MLXArray) -> MLXArray {
        norm(proj(pixels).flattened(start: 1, end: 2))
    }
}

final class Preprocessor: Module {
    let patchifier: Patchifier
    @ParameterInfo(key: "pos_embed") var positions: MLXArray

    init(_ sizes: VisionSizes) {
        patchifier = Patchifier(sizes)
        super.init()
        let side = sizes.imageSize / sizes.patchSize
        _positions.wrappedValue = MLXArray.zeros([1, side * side, sizes.embedDim])
    }

    func callAsFunction(_ pixels: MLXArray) -> MLXArray {
        patchifier(pixels) + positions
    }
}

/// Normalised pixels (B, S, S, 3) -> a token for each patch (B, N, D), after the final norm.
final class VisionEncoder: Module {
    let preprocessor: Preprocessor
    let trunk: Trunk

    init(_ sizes: VisionSizes) {
        preprocessor = Preprocessor(sizes)
        trunk = Trunk(sizes)
    }

    func callAsFunction(_ pixels: MLXArray) -> MLXArray {
        trunk(preprocessor(pixels))
    }
}
