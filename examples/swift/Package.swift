// swift-tools-version: 6.0
import PackageDescription

// Copy the targets that an app needs; only AIMNative and AIMPython have dependencies.
let package = Package(
    name: "AIMExamples",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [
        .library(name: "AIMPhotos", targets: ["AIMPhotos"]),
        .library(name: "AIMGraphs", targets: ["AIMGraphs"]),
        .library(name: "AIMNative", targets: ["AIMNative"]),
        .library(name: "AIMPython", targets: ["AIMPython"]),
        .executable(name: "aim-embed", targets: ["aim-embed"]),
    ],
    dependencies: [
        // 0.31.6 asks for Swift 6.3, so for an Xcode newer than 26.3.
        .package(url: "https://github.com/ml-explore/mlx-swift", exact: "0.31.6"),
        .package(url: "https://github.com/pvieito/PythonKit", exact: "0.5.1"),
    ],
    targets: [
        .target(name: "AIMPhotos"),
        .target(name: "AIMGraphs", dependencies: ["AIMPhotos"]),
        .target(
            name: "AIMNative",
            dependencies: [
                "AIMPhotos",
                .product(name: "MLX", package: "mlx-swift"),
                .product(name: "MLXNN", package: "mlx-swift"),
            ]),
        .target(
            name: "AIMPython",
            dependencies: [
                .product(
                    name: "PythonKit", package: "PythonKit",
                    condition: .when(platforms: [.macOS, .linux]))
            ]),
        .executableTarget(
            name: "aim-embed", dependencies: ["AIMPhotos", "AIMGraphs", "AIMNative", "AIMPython"]),
        .target(name: "GoldenSupport", dependencies: ["AIMPhotos"], path: "Tests/GoldenSupport"),
        .testTarget(name: "AIMPhotosTests", dependencies: ["AIMPhotos", "GoldenSupport"]),
        .testTarget(name: "AIMNativeTests", dependencies: ["AIMNative", "GoldenSupport"]),
    ],
    swiftLanguageModes: [.v5]
)
