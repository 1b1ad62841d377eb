// The WKV of RWKV-5 and -6 over a sequence: spikegpt/kernels/wkv6/reference.py, wkv6.
//
// S is the state of a head after a token, G its gradient without what the token itself reads. A thread walks through
// time with one row, a channel of keys, or one column, a channel of values, in registers; neither needs another.
// Launch: B * H * N threads along x; N, the channels of a head, is 32, 64 or 128.
//
//   forward     wkv6_forward             columns of S, forwards
//   backward    wkv6_backward_columns    columns of G, backwards
//               wkv6_backward_state      rows of S, forwards
//               wkv6_backward_rows       rows of G, backwards, and of S, forwards, a chunk at a time
//
//   receptance, key, value, output, grad_*   (B, T, H, N) element
//   decay, grad_log_decay         (B, T, H, N) float; decay = exp(log_decay), which may be 0
//   first                         (H, N) float: time_first; grad_first (B, H, N) float
//   state, last, grad_last, grad_state   (B, H, N, N) float: a row per channel of keys
//   checkpoints                   (chunks, B * H * N, N) float: the thread's row of S before every CHUNK tokens
//   kept                          (CHUNK + 1, B * H * N, N) float: the same before each of them, and the row of G
//
// Nothing is divided by a decay: the gradient of log_decay is that of the state after a token times the state before
// it, which is made anew from the checkpoint before.
#include "heads.cuh"

#define CHUNK 16

extern "C" __global__ void wkv6_forward(
    const element* __restrict__ receptance, const float* __restrict__ decay, const element* __restrict__ key,
    const element* __restrict__ value, const float* __restrict__ first, const float* __restrict__ state,
    element* __restrict__ output, float* __restrict__ last, int B, int T, int H, int N
) {
    const auto walk = [&](auto channel) {
        float column[channel.size];
        channel.load_column(column, state);
        const float* own = first + channel.head(H) * channel.size;
        long long head = channel.first;
        for (int t = 0; t < T; t++, head += channel.stride) {
            channel.ask_ahead(t, AHEAD, receptance, decay, key, value);
            const long long here = head + channel.lane;
            const float v = to_float(value[here]);
            Sum read, bonus;
            channel.each(
                [&](int i, float r, float w, float k, float u) {
                    read.add(i, column[i] * r);
                    bonus.add(i, r * u * k);
                    column[i] = w * column[i] + k * v;
                },
                receptance + head, decay + head, key + head, own
            );
            output[here] = from_float(read.total() + bonus.total() * v);
        }
        channel.store_column(column, last);
    };
    walk_channel(walk, B, T, H, N);
}

extern "C" __global__ void wkv6_backward_columns(
    const element* __restrict__ grad_output, const float* __restrict__ grad_last,
    const element* __restrict__ receptance, const float* __restrict__ decay, const element* __restrict__ key,
    const float* __restrict__ first, element* __restrict__ grad_value, float* __restrict__ grad_state, int B, int T,
    int H, int N
) {
    const auto walk = [&](auto channel) {
        float grad[channel.size];
        channel.load_column(grad, grad_last);
        const float* own = first + channel.head(H) * channel.size;
        long long head = channel.first + (T - 1) * channel.stride;
        for (int t = T - 1; t >= 0; t--, head -= channel.stride) {
            channel.ask_ahead(t, -AHEAD, grad_output, receptance, decay, key);
            const long long here = head + channel.lane;
            const float grad_read = to_float(grad_output[here]);
            Sum written, bonus;
            channel.each(
                [&](int i, float r, float w, float k, float u) {
                    written.add(i, grad[i] * k);
                    bonus.add(i, r * u * k);
                    grad[i] = w * grad[i] + r * grad_read;
                },
                receptance + head, decay + head, key + head, own
            );
            grad_value[here] = from_float(written.total() + bonus.total() * grad_read);
        }
        channel.store_column(grad, grad_state);
    };
    walk_channel(walk, B, T, H, N);
}

// The thread's row of what it keeps at a place, as in memory of (places, B * H * N, N).
template <class Channel>
__device__ __forceinline__ long long kept_at(const Channel& channel, int place, int B, int H) {
    return (long long)place * B * H * Channel::size * Channel::size + channel.matrix + channel.lane * Channel::size;
}

extern "C" __global__ void wkv6_backward_state(
    const element* __restrict__ grad_output, const element* __restrict__ receptance, const float* __restrict__ decay,
    const element* __restrict__ key, const element* __restrict__ value, const float* __restrict__ first,
    const float* __restrict__ state, element* __restrict__ grad_receptance, float* __restrict__ grad_first,
    float* __restrict__ checkpoints, int B, int T, int H, int N
) {
    const auto walk = [&](auto channel) {
        const float u = first[channel.head(H) * channel.size + channel.lane];
        float row[channel.size], sum = 0.0f;
        channel.load_row(row, state);
        long long head = channel.first;
        for (int t = 0; t < T; t++, head += channel.stride) {
            channel.ask_ahead(t, AHEAD, grad_output, receptance, decay, key, value);
            if (t % CHUNK == 0) {
                float* to = checkpoints + kept_at(channel, t / CHUNK, B, H);
#pragma unroll
                for (int j = 0; j < channel.size; j++) to[j] = row[j];
            }
            const long long here = head + channel.lane;
            const float w = decay[here], k = to_float(key[here]);
            Sum read, own;
            // in one pass: what two of them share would stay in registers, which heads of 128 do not have
            channel.each(
                [&](int j, float grad_read, float v) {
                    read.add(j, row[j] * grad_read);
                    own.add(j, grad_read * v);
                    row[j] = w * row[j] + k * v;
                },
                grad_output + head, value + head
            );
            grad_receptance[here] = from_float(read.total() + u * k * own.total());
            sum += to_float(receptance[here]) * k * own.total();
        }
        grad_first[channel.matrix / channel.size + channel.lane] = sum;
    };
    walk_channel(walk, B, T, H, N);
}

extern "C" __global__ void wkv6_backward_rows(
    const element* __restrict__ grad_output, const float* __restrict__ grad_last,
    const element* __restrict__ receptance, const float* __restrict__ decay, const element* __restrict__ key,
    const element* __restrict__ value, const float* __restrict__ first, const float* __restrict__ checkpoints,
    float* __restrict__ grad_log_decay, element* __restrict__ grad_key, float* __restrict__ kept, int B, int T, int H,
    int N
) {
    const auto walk = [&](auto channel) {
        const float u = first[channel.head(H) * channel.size + channel.lane];
        // of S while a chunk is made anew, then of G: both at once are more registers than heads of 128 have
        float row[channel.size];
        channel.load_row(row, grad_last);
        for (int chunk = (T - 1) / CHUNK; chunk >= 0; chunk--) {
            const int start = chunk * CHUNK, end = min(start + CHUNK, T);
            float* aside = kept + kept_at(channel, CHUNK, B, H);
#pragma unroll
            for (int j = 0; j < channel.size; j++) aside[j] = row[j];
            channel.each([&](int j, float x) { row[j] = x; }, checkpoints + kept_at(channel, chunk, B, H));
            for (int t = start; t < end; t++) {
                float* to = kept + kept_at(channel, t - start, B, H);
#pragma unroll
                for (int j = 0; j < channel.size; j++) to[j] = row[j];
                const long long head = channel.first + t * channel.stride, here = head + channel.lane;
                const float w = decay[here], k = to_float(key[here]);
                channel.each([&](int j, float v) { row[j] = w * row[j] + k * v; }, value + head);
            }
            channel.each([&](int j, float x) { row[j] = x; }, aside);
            long long head = channel.first + (end - 1) * channel.stride;
            for (int t = end - 1; t >= start; t--, head -= channel.stride) {
                channel.ask_ahead(t, -AHEAD, grad_output, receptance, decay, key, value);
                const long long here = head + channel.lane;
                const float r = to_float(receptance[here]), w = decay[here];
                // volatile: else all of them are asked for at once, and heads of 128 have no registers for that
                const volatile float* before = kept + kept_at(channel, t - start, B, H);
                Sum written, own, decayed;
#pragma unroll
                for (int j = 0; j < channel.size; j++) decayed.add(j, row[j] * before[j]);
                channel.each(
                    [&](int j, float grad_read, float v) {
                        written.add(j, row[j] * v);
                        own.add(j, grad_read * v);
                        row[j] = w * row[j] + r * grad_read;
                    },
                    grad_output + head, value + head
                );
                grad_key[here] = from_float(written.total() + r * u * own.total());
                grad_log_decay[here] = w * decayed.total();
            }
        }
    };
    walk_channel(walk, B, T, H, N);
}
