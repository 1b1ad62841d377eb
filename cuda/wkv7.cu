// RWKV-7's WKV over a sequence: spikegpt/kernels/wkv7/reference.py, wkv7.
//
// S is the state of a head after a token, G the gradient of that S with what the token's own output sends. A thread
// walks through time with one row or one column of one of them in registers. A row needs no other: `removed`, S a, and
// `grad_removed`, G b, are one number of each row; where these are stored, a column needs no other either. So threads
// share nothing. Launch: B * H * N threads along x; N, the channels of a head, is 32, 64 or 128.
//
//   forward     wkv7_forward             rows of S, forwards
//   backward    wkv7_forward             the same once more, for `removed`
//               wkv7_backward_rows       rows of G, backwards
//               wkv7_backward_state      columns of S, forwards
//               wkv7_backward_columns    columns of G, backwards
//
//   receptance, key, value, a, b, output, grad_*   (B, T, H, N) element; output may be null
//   decay, grad_log_decay         (B, T, H, N) float; decay = exp(log_decay)
//   state, last, grad_last, grad_state   (B, H, N, N) float: a row per channel of values; last may be null
//   removed, grad_removed         (B, T, H, N) float; removed may be null where the forward pass is all that is wanted
//   checkpoints                   (chunks, B, H, N, N) float: S after every CHUNK tokens and after the last one
//   terms                         (B, T, H, N) float: of grad_log_decay, what S says
//
// Of log_decay the gradient is D_t = exp(log_decay_t) (G_t * S_{t-1} summed along columns), which would need both at
// once. But what S_t is made of says that   D_t = sum(G_t * S_t) - b grad_b - k grad_k,   and what G_t is made of that
// sum(G_t * S_t) = D_{t+1} + a_{t+1} grad_a_{t+1} + r grad_r. So the one follows from the next, and from the product of
// both matrices only once in CHUNK tokens, whereby rounding does not add up. Its error is that of these terms, however
// strong the decay: far below RWKV-7's limit of exp(-0.61), where next to nothing is left of D, rounding is.
#include "heads.cuh"

#define CHUNK 32

extern "C" __global__ void wkv7_forward(
    const element* __restrict__ receptance, const float* __restrict__ decay, const element* __restrict__ key,
    const element* __restrict__ value, const element* __restrict__ a, const element* __restrict__ b,
    const float* __restrict__ state, element* __restrict__ output, float* __restrict__ removed,
    float* __restrict__ last, int B, int T, int H, int N
) {
    const auto walk = [&](auto channel) {
        float row[channel.size];
        channel.load_row(row, state);
        long long head = channel.first;
        for (int t = 0; t < T; t++, head += channel.stride) {
            channel.ask_ahead(t, AHEAD, receptance, decay, key, value, a, b);
            const long long here = head + channel.lane;
            Sum sum;
            channel.each([&](int j, float a) { sum.add(j, row[j] * a); }, a + head);
            const float u = sum.total(), v = to_float(value[here]);
            if (removed) removed[here] = u;
            channel.each(
                [&](int j, float w, float b, float k) { row[j] = w * row[j] + u * b + v * k; }, decay + head, b + head,
                key + head
            );
            if (output) {
                Sum read;
                channel.each([&](int j, float r) { read.add(j, row[j] * r); }, receptance + head);
                output[here] = from_float(read.total());
            }
        }
        if (last) channel.store_row(row, last);
    };
    walk_channel(walk, B, T, H, N);
}

extern "C" __global__ void wkv7_backward_rows(
    const element* __restrict__ grad_output, const float* __restrict__ grad_last,
    const element* __restrict__ receptance, const float* __restrict__ decay, const element* __restrict__ key,
    const element* __restrict__ a, const element* __restrict__ b, element* __restrict__ grad_value,
    float* __restrict__ grad_removed, float* __restrict__ grad_state, int B, int T, int H, int N
) {
    const auto walk = [&](auto channel) {
        float grad[channel.size];
        channel.load_row(grad, grad_last);
        long long head = channel.first + (T - 1) * channel.stride;
        for (int t = T - 1; t >= 0; t--, head -= channel.stride) {
            channel.ask_ahead(t, -AHEAD, grad_output, receptance, decay, key, a, b);
            const long long here = head + channel.lane;
            const float grad_read = to_float(grad_output[here]);
            Sum written, erased;
            channel.each(
                [&](int j, float r, float k, float b) {
                    grad[j] += grad_read * r;
                    written.add(j, grad[j] * k);
                    erased.add(j, grad[j] * b);
                },
                receptance + head, key + head, b + head
            );
            const float grad_u = erased.total();
            grad_value[here] = from_float(written.total());
            grad_removed[here] = grad_u;
            channel.each([&](int j, float w, float a) { grad[j] = w * grad[j] + grad_u * a; }, decay + head, a + head);
        }
        channel.store_row(grad, grad_state);
    };
    walk_channel(walk, B, T, H, N);
}

extern "C" __global__ void wkv7_backward_state(
    const element* __restrict__ grad_output, const element* __restrict__ receptance, const float* __restrict__ decay,
    const element* __restrict__ key, const element* __restrict__ value, const element* __restrict__ a,
    const element* __restrict__ b, const float* __restrict__ state, const float* __restrict__ removed,
    const float* __restrict__ grad_removed, element* __restrict__ grad_receptance, element* __restrict__ grad_a,
    float* __restrict__ terms, float* __restrict__ checkpoints, int B, int T, int H, int N
) {
    const auto walk = [&](auto channel) {
        float column[channel.size];
        channel.load_column(column, state);
        long long head = channel.first;
        // what the token before says
        float term = 0.0f;
        for (int t = 0; t < T; t++, head += channel.stride) {
            channel.ask_ahead(t, AHEAD, grad_output, receptance, decay, key, value, a, b, removed, grad_removed);
            const long long here = head + channel.lane;
            Sum erased, read;
            channel.each([&](int i, float grad_u) { erased.add(i, column[i] * grad_u); }, grad_removed + head);
            grad_a[here] = from_float(erased.total());
            if (t % CHUNK) term += to_float(a[here]) * erased.total();
            if (t) terms[here - channel.stride] = term;
            const float w = decay[here], k = to_float(key[here]), b_here = to_float(b[here]);
            channel.each(
                [&](int i, float u, float v, float grad_read) {
                    column[i] = w * column[i] + u * b_here + v * k;
                    read.add(i, column[i] * grad_read);
                },
                removed + head, value + head, grad_output + head
            );
            grad_receptance[here] = from_float(read.total());
            term = to_float(receptance[here]) * read.total();
            if ((t + 1) % CHUNK == 0 || t + 1 == T) {
                float* to = checkpoints + (long long)(t / CHUNK) * B * H * N * N + channel.matrix + channel.lane;
#pragma unroll
                for (int i = 0; i < channel.size; i++) to[i * N] = column[i];
            }
        }
        terms[head - channel.stride + channel.lane] = term;
    };
    walk_channel(walk, B, T, H, N);
}

extern "C" __global__ void wkv7_backward_columns(
    const element* __restrict__ grad_output, const float* __restrict__ grad_last,
    const element* __restrict__ receptance, const float* __restrict__ decay, const element* __restrict__ key,
    const element* __restrict__ value, const element* __restrict__ a, const element* __restrict__ b,
    const float* __restrict__ removed, const float* __restrict__ grad_removed, const float* __restrict__ terms,
    const float* __restrict__ checkpoints, float* __restrict__ grad_log_decay, element* __restrict__ grad_key,
    element* __restrict__ grad_b, int B, int T, int H, int N
) {
    const auto walk = [&](auto channel) {
        float grad[channel.size];
        channel.load_column(grad, grad_last);
        long long head = channel.first + (T - 1) * channel.stride;
        float grad_decayed = 0.0f;
        for (int t = T - 1; t >= 0; t--, head -= channel.stride) {
            channel.ask_ahead(
                t, -AHEAD, grad_output, receptance, decay, key, value, a, b, removed, grad_removed, terms
            );
            const long long here = head + channel.lane;
            if ((t + 1) % CHUNK == 0 || t + 1 == T) {
                // volatile: else all of them are asked for at once, and heads of 128 have no registers for that
                const volatile float* from =
                    checkpoints + (long long)(t / CHUNK) * B * H * N * N + channel.matrix + channel.lane;
                Sum both;
#pragma unroll
                for (int i = 0; i < channel.size; i++) both.add(i, grad[i] * from[i * N]);
                grad_decayed = both.total();
            }
            const float r = to_float(receptance[here]), w = decay[here], a_here = to_float(a[here]);
            Sum written, erased;
            channel.each(
                [&](int i, float grad_read, float v, float u) {
                    grad[i] += grad_read * r;
                    written.add(i, grad[i] * v);
                    erased.add(i, grad[i] * u);
                },
                grad_output + head, value + head, removed + head
            );
            grad_key[here] = from_float(written.total());
            grad_b[here] = from_float(erased.total());
            grad_decayed += terms[here] - to_float(key[here]) * written.total() - to_float(b[here]) * erased.total();
            grad_log_decay[here] = grad_decayed;
            channel.each([&](int i, float grad_u) { grad[i] = w * grad[i] + grad_u * a_here; }, grad_removed + head);
        }
    };
    walk_channel(walk, B, T, H, N);
}
