// The event-driven matrix-vector product, for decoding: y = spikes @ weight.
// spikegpt/kernels/event_matvec/reference.py, event_matvec.
//
// What one input sends to all outputs is one row of `weight`: a spike is one contiguous read, and the rows of silent
// inputs are not touched. Every thread finds the spikes itself, 32 inputs at a time: they are few bytes, and a kernel
// that listed them first would be one more to launch. So that there are threads enough for one text, the inputs are cut
// into slices: gather_rows adds up the rows of each slice, sum_slices the slices. The shape of the weight alone says
// what is added in which order: the same sums always, whatever else is in the batch. The host need not know how many
// inputs fired, so CUDA graphs can hold this. Threads share nothing.
// Launch: gather_rows_* on LANES * ceil(outputs / (LANES * COLUMNS)) threads, `slices` blocks along y and N along z;
// sum_slices on N * outputs threads.
//
//   spikes    (N, inputs) element: whole numbers, mostly 0; any other number is right too
//   weight    (inputs, outputs) float, or the bits of bfloat16, or signed char
//   partial   (slices, N, outputs) float, working memory; a slice is `slice_inputs` inputs, a multiple of SEGMENT
//   scale     (outputs) float, what the sums are multiplied by, or null
//   y         (N, outputs) element
#include "elements.cuh"

// inputs that are looked at together, one bit each of a word
#define SEGMENT 32
// rows, and slices, that are on their way together
#define ROWS 4
#define SLICES 16
// outputs of one thread, and how far apart they lie: neighbouring threads read neighbouring weights, whatever the width
// of a row
#define COLUMNS 8
#define LANES 32
// threads of a block (spikegpt/kernels/gpu.py), and blocks that share a multiprocessor: 64 registers for each thread.
// Left alone the compiler takes fewer, and loads that should be on their way together wait for each other
#define THREADS 64
#define BLOCKS 16

__device__ __forceinline__ float widen(float weight) { return weight; }
__device__ __forceinline__ float widen(unsigned short bits) { return __uint_as_float((unsigned int)bits << 16); }
__device__ __forceinline__ float widen(signed char weight) { return weight; }

// COUNT numbers that are `stride` apart, on their way together. What lies at or beyond `left` is not touched and reads
// as 0.
template <class number, int COUNT>
struct Several {
    number at[COUNT];

    __device__ __forceinline__ void load(const number* from, int stride, int left) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) at[i] = i < left ? from[(long long)i * stride] : (number)0;
    }
};

__device__ __forceinline__ word find_spikes(const element* spikes, int left) {
    Stretch<SEGMENT> segment;
    segment.load(spikes, 1, left);
    word fired = 0;
#pragma unroll
    for (int i = 0; i < SEGMENT; i++) fired |= (word)(segment[i] != 0.0f) << i;
    return fired;
}

template <class stored>
__device__ __forceinline__ void gather_rows(
    const element* __restrict__ spikes, const stored* __restrict__ weight, float* __restrict__ partial, int inputs,
    int outputs, int slice_inputs
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, slice = blockIdx.y, n = blockIdx.z, N = gridDim.z;
    const int column = at / LANES * (LANES * COLUMNS) + at % LANES;
    if (column >= outputs) return;
    const int columns = (outputs - column + LANES - 1) / LANES;
    const int begin = slice * slice_inputs, end = min(inputs, begin + slice_inputs);
    spikes += (long long)n * inputs;
    float sum[COLUMNS] = {};
    for (int start = begin; start < end; start += SEGMENT) {
        word fired = find_spikes(spikes + start, end - start);
        while (fired) {
            float amount[ROWS];
            Several<stored, COLUMNS> row[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                // the first spike that is left; where none is, nothing is read
                const int input = start + __ffs(fired) - 1;
                amount[r] = fired ? to_float(spikes[input]) : 0.0f;
                row[r].load(weight + (long long)input * outputs + column, LANES, fired ? columns : 0);
                fired &= fired - 1;
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#pragma unroll
                for (int i = 0; i < COLUMNS; i++) sum[i] += amount[r] * widen(row[r].at[i]);
            }
        }
    }
    partial += ((long long)slice * N + n) * outputs + column;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        if (i < columns) partial[i * LANES] = sum[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gather_rows_float32(
    const element* __restrict__ spikes, const float* __restrict__ weight, float* __restrict__ partial, int inputs,
    int outputs, int slice_inputs
) {
    gather_rows(spikes, weight, partial, inputs, outputs, slice_inputs);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gather_rows_bfloat16(
    const element* __restrict__ spikes, const unsigned short* __restrict__ weight, float* __restrict__ partial,
    int inputs, int outputs, int slice_inputs
) {
    gather_rows(spikes, weight, partial, inputs, outputs, slice_inputs);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gather_rows_int8(
    const element* __restrict__ spikes, const signed char* __restrict__ weight, float* __restrict__ partial, int inputs,
    int outputs, int slice_inputs
) {
    gather_rows(spikes, weight, partial, inputs, outputs, slice_inputs);
}

// sums = N * outputs
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) sum_slices(
    const float* __restrict__ partial, const float* __restrict__ scale, element* __restrict__ y, int sums, int outputs,
    int slices
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= sums) return;
    float sum = 0.0f;
    for (int start = 0; start < slices; start += SLICES) {
        Several<float, SLICES> slice;
        slice.load(partial + (long long)start * sums + at, sums, slices - start);
#pragma unroll
        for (int i = 0; i < SLICES; i++) sum += slice.at[i];
    }
    y[at] = from_float(scale ? sum * scale[at % outputs] : sum);
}
