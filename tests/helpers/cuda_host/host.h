// Lets a host compiler read the CUDA sources: enough of the language for kernels whose threads share nothing.
// A kernel runs as a loop over its blocks and their threads, forwards or backwards: the order must not matter.
#include <cmath>
#include <cstring>
#include <cstddef>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
// one copy, used by one thread after the other
#define __shared__ static
#define __launch_bounds__(...)

struct uint3 { unsigned x, y, z; };
static uint3 blockIdx, threadIdx, blockDim, gridDim;

static inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
static inline float __fmul_rn(float a, float b) { volatile float product = a * b; return product; }
static inline float __fadd_rn(float a, float b) { volatile float sum = a + b; return sum; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
// one unit in the last place off, so that a test sees it where the exact quotient is wanted; by a power of two it is exact there too
static inline float __fdividef(float a, float b) {
    int exponent;
    const float quotient = a / b;
    return std::frexp(std::fabs(b), &exponent) == 0.5f ? quotient : std::nextafter(quotient, 2 * quotient);
}
static inline int __ffs(unsigned bits) { return __builtin_ffs((int)bits); }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }

// the two conversions that elements.cuh writes in the machine's language
static inline float half_to_float(unsigned short bits) { _Float16 x; std::memcpy(&x, &bits, 2); return (float)x; }
static inline unsigned short float_to_half(float x) { _Float16 h = (_Float16)x; unsigned short bits; std::memcpy(&bits, &h, 2); return bits; }

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

template <class... A>
static void run(void (*kernel)(A...), const unsigned* grid, unsigned threads, int backwards, void** arguments) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    const std::size_t all = (std::size_t)grid[0] * grid[1] * grid[2] * threads;
    for (std::size_t n = 0; n < all; n++) {
        std::size_t i = backwards ? all - 1 - n : n;
        threadIdx = {(unsigned)(i % threads), 0, 0};
        i /= threads;
        blockIdx = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]), (unsigned)(i / grid[0] / grid[1])};
        call(kernel, arguments, std::index_sequence_for<A...>{});
    }
}
