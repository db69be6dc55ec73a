// What an app in C++ does with a .mlxfn: import_function MODEL.mlxfn B H W < rgb > float32
// Reads B x H x W x 3 bytes from standard input, writes the output's float32 numbers.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "mlx/array.h"
#include "mlx/export.h"

namespace mx = mlx::core;

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: import_function MODEL.mlxfn B H W\n";
    return 2;
  }
  mx::Shape shape{std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), 3};
  std::vector<std::uint8_t> pixels(
      static_cast<std::size_t>(shape[0]) * shape[1] * shape[2] * shape[3]);
  std::cin.read(reinterpret_cast<char*>(pixels.data()), pixels.size());
  if (!std::cin) {
    std::cerr << "expected " << pixels.size() << " bytes\n";
    return 2;
  }
  auto encode = mx::import_function(argv[1]);
  auto output = encode({mx::array(pixels.data(), shape)})[0];
  output.eval();
  std::cout.write(reinterpret_cast<const char*>(output.data<float>()), output.nbytes());
}
