// Rows of x rounded to 8 bits on the way to a product: codes and scale as quant.cuh says.
//   block    256 threads for each row of x [M][K]; a thread makes four codes, one word, at a time
//   floor    sizeof(X) + 1 bytes for each number; x is read a second time, from L2

#include "quant.cuh"

extern "C" __global__ void __launch_bounds__(256) quantise_rows(const X *x, uint32_t *codes, float *scale, int K, int pitch) {
    SHARED(int, scratch, 32);
    const X *row = x + (int64_t)blockIdx.x * K;
    int largest = 0;  // as bits, which order numbers as their values do, infinity and NaN last
    for (int k = threadIdx.x; k < K; k += 256) largest = max(largest, (int)(__float_as_uint(widen(row[k])) & 0x7fffffff));
    largest = block_max(largest, scratch);
    const float most = __uint_as_float(largest);
    const bool finite = largest < 0x7f800000, usable = finite && most >= 1e-36f;
    const float inverse = usable ? 127.0f / most : 0.0f;
    if (threadIdx.x == 0) scale[blockIdx.x] = usable ? most / 127.0f : finite ? 0.0f : NAN;
    for (int word = threadIdx.x; word < pitch / 4; word += 256) {
        uint32_t four = 0;
        for (int i = 0; i < 4; i++) {
            const int k = BITS == 8 ? 4 * word + i : word / 8 * GROUP + word % 4 * 8 + 2 * i + word % 8 / 4;
            const int code = usable && k < K ? (int)rintf(widen(row[k]) * inverse) : 0;
            four |= (uint32_t)(code & 255) << 8 * i;
        }
        codes[(int64_t)blockIdx.x * (pitch / 4) + word] = four;
    }
}
