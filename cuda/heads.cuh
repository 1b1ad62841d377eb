#pragma once
// What kernels share whose state is a matrix for each head: a thread has one row or one column of it in registers, and
// needs no other thread's. Launch: B * H * N threads along x; N, the channels of a head, is 32, 64 or 128.
#include "elements.cuh"

// how many tokens ahead memory is asked
#define AHEAD 4

__device__ __forceinline__ float as_float(float x) { return x; }
#if ELEMENT != 0
__device__ __forceinline__ float as_float(element x) { return to_float(x); }
#endif

// one load of up to 16 bytes
template <class Number>
struct alignas(4 * sizeof(Number)) Four {
    Number at[4];
};

template <class Use, class... Numbers>
__device__ __forceinline__ void each_of_four(int i, const Use& use, const Four<Numbers>&... numbers) {
#pragma unroll
    for (int j = 0; j < 4; j++) use(i + j, as_float(numbers.at[j])...);
}

// A sum in four parts, which do not wait for one another.
struct Sum {
    float part[4] = {};

    __device__ __forceinline__ void add(int i, float x) { part[i % 4] += x; }
    __device__ __forceinline__ float total() const { return (part[0] + part[1]) + (part[2] + part[3]); }
};

// One channel of one head of one text.
template <int N>
struct Channel {
    static constexpr int size = N;
    int lane, T;
    // between two tokens; the head's first number of a sequence, and of matrices
    long long stride, first, matrix;

    __device__ __forceinline__ Channel(int at, int T, int H)
        : lane(at % N),
          T(T),
          stride((long long)H * N),
          first((long long)(at / N / H) * T * H * N + (at / N % H) * N),
          matrix((long long)(at / N) * N * N) {}

    // has what the vectors bring `tokens` later, or earlier, on its way
    template <class... Numbers>
    __device__ __forceinline__ void ask_ahead(int t, int tokens, const Numbers*... vectors) const {
        if (t + tokens < 0 || t + tokens >= T) return;
        const long long there = first + (t + tokens) * stride + lane;
        (ask(vectors + there), ...);
    }

    // use(i, x, y, ...) for the N numbers of each vector, which all threads of a head read: four at a time, because
    // a load for each would outnumber the arithmetic
    template <class Use, class... Numbers>
    __device__ __forceinline__ void each(const Use& use, const Numbers*... vectors) const {
#pragma unroll
        for (int i = 0; i < N; i += 4) each_of_four(i, use, *(const Four<Numbers>*)(vectors + i)...);
    }

    __device__ __forceinline__ void load_row(float (&row)[N], const float* from) const {
        each([&](int j, float x) { row[j] = x; }, from + matrix + lane * N);
    }
    __device__ __forceinline__ void store_row(const float (&row)[N], float* to) const {
#pragma unroll
        for (int j = 0; j < N; j++) to[matrix + lane * N + j] = row[j];
    }
    // which of the H heads of its text
    __device__ __forceinline__ int head(int H) const { return (int)(matrix / N / N % H); }

    __device__ __forceinline__ void load_column(float (&column)[N], const float* from) const {
#pragma unroll
        for (int i = 0; i < N; i++) column[i] = from[matrix + i * N + lane];
    }
    __device__ __forceinline__ void store_column(const float (&column)[N], float* to) const {
#pragma unroll
        for (int i = 0; i < N; i++) to[matrix + i * N + lane] = column[i];
    }
};

// Calls walk(channel) of this thread, compiled for the size of its heads.
template <class Walk>
__device__ __forceinline__ void walk_channel(const Walk& walk, int B, int T, int H, int N) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= B * H * N) return;
    if (N == 32) walk(Channel<32>(at, T, H));
    if (N == 64) walk(Channel<64>(at, T, H));
    if (N == 128) walk(Channel<128>(at, T, H));
}
