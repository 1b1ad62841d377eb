// The WKV in the manner of the published kernel, for comparison: one thread per channel of a text, float32, one step after
// the other, no prefetch, no split of time. key, value, output (B, T, C) float; log_decay, time_first (C) float.
extern "C" __global__ void plain_wkv(
    const float* log_decay, const float* time_first, const float* key, const float* value, float* output, int B, int T, int C
) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= B * C) return;
    const int b = at / C, c = at % C;
    const float w = log_decay[c], u = time_first[c];
    float numerator = 0.0f, denominator = 0.0f, max_exponent = -1e38f;
    for (int t = 0; t < T; t++) {
        const long long place = ((long long)b * T + t) * C + c;
        const float k = key[place], v = value[place];
        float scale = fmaxf(max_exponent, u + k);
        float past = expf(max_exponent - scale), present = expf(u + k - scale);
        output[place] = (past * numerator + present * v) / (past * denominator + present);
        scale = fmaxf(max_exponent + w, k);
        past = expf(max_exponent + w - scale);
        present = expf(k - scale);
        numerator = past * numerator + present * v;
        denominator = past * denominator + present;
        max_exponent = scale;
    }
}
