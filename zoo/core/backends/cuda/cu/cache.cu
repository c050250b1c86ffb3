// x[b][positions[b] + l] = update[b][l]: new keys and values into a cache (batch, position, head, number), at positions that lie
// on the device, so that a recorded step writes where they say now. What would lie outside of x is left out.
//   layout    strides in numbers, of any order of the first three axes; numbers are moved as T, a word of their size
//   grid      a thread for each number: of decoding these are some kilobytes, for which a launch is what it costs
//   floor     2 B L M N numbers

#include "prelude.cuh"

extern "C" __global__ void update_rows(
    T* x, int64_t x_batch, int64_t x_position, int64_t x_head, int64_t x_number, const T* update, int64_t batch, int64_t position,
    int64_t head, int64_t number, const int* positions, int B, int S, int L, int M, int N) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)B * L * M * N) return;
    const int n = i % N, m = i / N % M, l = i / N / M % L, b = i / N / M / L;
    const int64_t to = (int64_t)positions[b] + l;
    if (to < 0 || to >= S) return;
    x[b * x_batch + to * x_position + m * x_head + n * x_number] = update[b * batch + l * position + m * head + n * number];
}
