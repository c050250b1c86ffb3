// What the kernels along rows share: how a row is read and reduced.
//
// layout     x (rows, columns), columns next to each other. A team of TEAM threads takes a row: a warp (eight rows to a block of
//            256 threads) or a whole block. Thread t of the team has the vectors t, t + TEAM, ... of 16 bytes, so that
//            neighbours read neighbouring memory
// registers  VECTORS vectors of a thread, in float32: the row is read from memory once, whatever the passes over it; 32 values
//            of a thread at most (16 in blocks of 1024 threads, which have 64 registers each). VECTORS = 0: the row is longer
//            than its team holds, and every pass reads it again (from the caches up to some 100,000 values)
// bounds     (THREADS, 1) where ptxas, left to choose, takes registers for one more block on an SM and spills a few for it: the
//            gradients of norms (sm_75: 64 and a spill; so 72) and of log_softmax (sm_100: 32 and three; so 46)
// alignment  16-byte accesses where the first value and every row lie on 16 bytes; else the same thread reads the same values one
//            by one, out of lines that the first of these reads brought into L1
//
// Python sets TEAM and VECTORS (kernels/plan.py: team).
#include "prelude.cuh"
#include "vectors.cuh"

constexpr int THREADS = TEAM == 32 ? 256 : TEAM;
constexpr bool HELD = VECTORS > 0;

// Which row this thread works on, and which of its team it is. Teams are whole warps, so a kernel may return for row >= rows.
struct Team {
    int64_t row;
    int thread;
    __device__ __forceinline__ Team()
        : row(TEAM == 32 ? (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32 : (int64_t)blockIdx.x),
          thread(TEAM == 32 ? threadIdx.x % 32 : threadIdx.x) {}
};

// f(v of all threads of the team), the same for each; f is associative and commutative. The order is fixed: every run, every bit.
template <typename Function> __device__ __forceinline__ float team_reduce(float v, Function f) {
    for (int d = 16; d > 0; d /= 2) v = f(v, __shfl_xor_sync(FULL, v, d));
    if (TEAM > 32) {
        constexpr int WARPS = THREADS / 32;
        SHARED(float, parts, WARPS);
        __syncthreads();  // what was left here by a reduction before has been read
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
        __syncthreads();
        v = parts[threadIdx.x % WARPS];
        for (int d = WARPS / 2; d > 0; d /= 2) v = f(v, __shfl_xor_sync(FULL, v, d));
    }
    return v;
}
__device__ __forceinline__ float team_sum(float v) {
    return team_reduce(v, [](float a, float b) { return a + b; });
}
// Of numbers: a NaN loses. Rows with one become NaN through their sum.
__device__ __forceinline__ float team_max(float v) {
    return team_reduce(v, [](float a, float b) { return fmaxf(a, b); });
}

// A row of Stored in registers, as float32.
template <typename Stored> struct Row {
    const Stored* x;
    int columns, thread;
    bool whole;
    float held[HELD ? VECTORS : 1][N];

    __device__ __forceinline__ Row(const Stored* first, const Team& team, int columns) : columns(columns), thread(team.thread) {
        x = first + team.row * columns;
        whole = columns % N == 0 && aligned(first);
        if (HELD) {
#pragma unroll
            for (int k = 0; k < VECTORS; k++) {
                const int j = (k * TEAM + thread) * N;
                if (j < columns) load(x + j, columns - j, whole, held[k]);
            }
        }
    }

    // f(j, n, v) for the vectors of this thread: values j .. j + n - 1 of the row in v, and 0 after them. What f writes into v is
    // there at the next pass if the row is HELD, and lost if not.
    template <typename Function> __device__ __forceinline__ void each(Function f) {
        if (HELD) {
#pragma unroll
            for (int k = 0; k < VECTORS; k++) {
                const int j = (k * TEAM + thread) * N;
                if (j < columns) f(j, at_most(N, columns - j), held[k]);
            }
        } else {
            for (int j = thread * N; j < columns; j += TEAM * N) {
                float v[N];
                load(x + j, columns - j, whole, v);
                f(j, at_most(N, columns - j), v);
            }
        }
    }
};
