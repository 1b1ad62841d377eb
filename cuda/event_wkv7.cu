// RWKV-7's WKV by events, without gradients: spikegpt/kernels/event_wkv7/reference.py, event_wkv7.
//
// What is read and edited, and by how much, does not depend on the matrices, so it is found first: the events of every
// token, 32 channels to a word, and then, column by column, what decay waits for each of them. A thread of the last
// kernel walks through time with one row of a head's matrix, visits the set bits, and touches no other number of it.
// The row lies in the thread's own column of shared memory, which unlike registers can be indexed. All rows of a head
// have the same events: threads of a head do not part. Threads share nothing.
// Launch: event_wkv7_find on B * T * H * words threads, words = ceil(N / 32); then event_wkv7_wait and
// event_wkv7_rows on B * H * N threads each. N, the channels of a head, is MOST_CHANNELS at most.
//
//   receptance, key, value, a, b, output   (B, T, H, N) element
//   log_decay         (B, T, H, N) float
//   edits, reads      (B, T, H, words) word: bit i of word w is channel 32 w + i, 0 beyond N. A column is edited where
//                     key, a or b are not 0, and read where the receptance is not
//   erasing, keeping  (B, T, H, N) float, of the columns that are edited: a times the decay that waited, and that decay
//                     with the token's own
//   reading           (B, T, H, N) float, of the columns that are read: receptance times the decay that waits then
//                     What no event is at is neither written nor read in these three.
//   matrix, last      (B, H, N, N) float: rows are channels of values, columns of keys
//   waiting, last_waiting   (B, H, N) float, of each column of keys the logarithm of the decay that waits
#include "elements.cuh"

// one word of packed events
#define CHANNELS 32
#define MOST_CHANNELS 128
// THREADS of spikegpt/kernels/gpu.py
#define THREADS 64
// columns whose numbers are on their way from memory together
#define AT_ONCE 4
// how many tokens ahead memory is asked
#define AHEAD 4

// Of CHANNELS channels, `left` at most, which are not 0.
__device__ __forceinline__ word find_events(const element* from, int left) {
    Stretch<CHANNELS> channels;
    channels.load(from, 1, left);
    word found = 0;
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) found |= (word)(channels[i] != 0.0f) << i;
    return found;
}

// of each word of `edits` and `reads`
extern "C" __global__ void event_wkv7_find(
    const element* __restrict__ receptance, const element* __restrict__ key, const element* __restrict__ a,
    const element* __restrict__ b, word* __restrict__ edits, word* __restrict__ reads, int B, int T, int H, int N
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, words = (N + CHANNELS - 1) / CHANNELS;
    if (at >= B * T * H * words) return;
    const int first = at % words * CHANNELS, left = N - first;
    const long long begin = (long long)(at / words) * N + first;
    edits[at] = find_events(key + begin, left) | find_events(a + begin, left) | find_events(b + begin, left);
    reads[at] = find_events(receptance + begin, left);
}

// of each column
extern "C" __global__ void event_wkv7_wait(
    const element* __restrict__ receptance, const float* __restrict__ log_decay, const element* __restrict__ a,
    const word* __restrict__ edits, const float* __restrict__ waiting, float* __restrict__ erasing,
    float* __restrict__ keeping, float* __restrict__ reading, float* __restrict__ last_waiting, int B, int T, int H,
    int N
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, words = (N + CHANNELS - 1) / CHANNELS;
    if (at >= B * H * N) return;
    const int column = at % N, head = at / N % H;
    const long long row = (long long)(at / N / H) * T;
    float waits = waiting[at];
    // many steps between two branches: what they load does not wait for one another
#pragma unroll 8
    for (int t = 0; t < T; t++) {
        const long long token = (row + t) * H + head, here = token * N + column;
        const bool is_edited = edits[token * words + column / CHANNELS] >> column % CHANNELS & 1;
        const float r = to_float(receptance[here]);
        if (is_edited) erasing[here] = to_float(a[here]) * expf(waits);
        waits += log_decay[here];
        if (is_edited) {
            keeping[here] = expf(waits);
            waits = 0.0f;
        }
        if (r != 0.0f) reading[here] = r * expf(waits);
    }
    last_waiting[at] = waits;
}

// AT_ONCE columns of events, or those that are left.
struct Columns {
    int at[AT_ONCE];
    bool is_there[AT_ONCE];

    // takes the first bits from `left`, a word that begins with column `first`
    __device__ __forceinline__ Columns(word& left, int first) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            is_there[i] = left != 0;
            at[i] = is_there[i] ? first + __ffs(left) - 1 : first;
            left &= left - 1;
        }
    }
};

template <class Use>
__device__ __forceinline__ void each_event(const word* events, int words, const Use& use) {
    for (int w = 0; w < words; w++) {
        for (word left = events[w]; left;) use(Columns(left, w * CHANNELS));
    }
}

// A row of a matrix, in the thread's own column of shared memory.
struct Row {
    float* numbers;

    __device__ __forceinline__ float& operator[](int column) const { return numbers[column * THREADS]; }

    // the sum of its numbers at the events, each times its factor
    __device__ __forceinline__ float sum(const word* events, int words, const float* factors) const {
        float part[AT_ONCE] = {};
        each_event(events, words, [&](const Columns& columns) {
            float factor[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) factor[i] = columns.is_there[i] ? factors[columns.at[i]] : 0.0f;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (columns.is_there[i]) part[i] += (*this)[columns.at[i]] * factor[i];
            }
        });
        return (part[0] + part[1]) + (part[2] + part[3]);
    }

    __device__ __forceinline__ void edit(
        const word* events, int words, const float* keeping, float removed, const element* b, float v,
        const element* key
    ) const {
        each_event(events, words, [&](const Columns& columns) {
            float keep[AT_ONCE];
            element erased[AT_ONCE], written[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (columns.is_there[i]) {
                    keep[i] = keeping[columns.at[i]];
                    erased[i] = b[columns.at[i]];
                    written[i] = key[columns.at[i]];
                }
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (columns.is_there[i]) {
                    float& number = (*this)[columns.at[i]];
                    number = keep[i] * number + removed * to_float(erased[i]) + v * to_float(written[i]);
                }
            }
        });
    }
};

// of each row
extern "C" __global__ void event_wkv7_rows(
    const element* __restrict__ key, const element* __restrict__ value, const element* __restrict__ b,
    const word* __restrict__ edits, const word* __restrict__ reads, const float* __restrict__ erasing,
    const float* __restrict__ keeping, const float* __restrict__ reading, const float* __restrict__ matrix,
    element* __restrict__ output, float* __restrict__ last, int B, int T, int H, int N
) {
    __shared__ float rows[MOST_CHANNELS * THREADS];
    const int at = blockIdx.x * blockDim.x + threadIdx.x, words = (N + CHANNELS - 1) / CHANNELS;
    if (at >= B * H * N) return;
    const Row row = {rows + threadIdx.x};
    const long long begin = (long long)at * N;
    for (int j = 0; j < N; j++) row[j] = matrix[begin + j];
    const int lane = at % N, head = at / N % H;
    for (int t = 0; t < T; t++) {
        const long long token = ((long long)(at / N / H) * T + t) * H + head, channels = token * N;
        if (t + AHEAD < T) {
            const long long later = token + AHEAD * H, ahead = later * N + lane;
            ask(edits + later * words), ask(reads + later * words);
            ask(key + ahead), ask(value + ahead), ask(b + ahead);
            ask(erasing + ahead), ask(keeping + ahead), ask(reading + ahead);
        }
        const float removed = row.sum(edits + token * words, words, erasing + channels);
        const float v = to_float(value[channels + lane]);
        row.edit(edits + token * words, words, keeping + channels, removed, b + channels, v, key + channels);
        output[channels + lane] = from_float(row.sum(reads + token * words, words, reading + channels));
    }
    for (int j = 0; j < N; j++) last[begin + j] = row[j];
}
