// Runs of values, as the row-wise kernels read and write them: 16 bytes at a time where memory allows it.
//
// N is the number of values of T in 16 bytes. Other arrays that are read beside T's (weights in float32 beside halves, say) are
// read N values at a time too: in two loads of 16 bytes, or in one of 8.
//
// Python sets T: how values are stored.

constexpr int N = 16 / sizeof(T);

template <typename Number> __device__ __forceinline__ Number at_most(Number a, Number b) { return a < b ? a : b; }

// Whether runs of N values from p on may be moved whole; true of no array.
template <typename Stored> __device__ __forceinline__ bool aligned(const Stored* p) {
    return (uint64_t)p % alignof(Vec<Stored, N>) == 0;
}

// v = p[0 .. N - 1], or, where only `left` < N are there, 0 after them. whole: all are there, and aligned.
template <typename Stored> __device__ __forceinline__ void load(const Stored* p, int64_t left, bool whole, float (&v)[N]) {
    if (whole) {
        constexpr int EACH = sizeof(Stored) * N > 16 ? 16 / sizeof(Stored) : N;
#pragma unroll
        for (int first = 0; first < N; first += EACH) {
            Vec<Stored, EACH> run;
            run.load(p + first);
#pragma unroll
            for (int i = 0; i < EACH; i++) v[first + i] = widen(run[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = i < left ? widen(p[i]) : 0.0f;
    }
}

// As load from p + at; `absent` everywhere where there is no array.
template <typename Stored>
__device__ __forceinline__ void load_or(const Stored* p, int64_t at, int64_t left, bool whole, float absent, float (&v)[N]) {
    if (p) return load(p + at, left, whole, v);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = absent;
}

template <typename Stored>
__device__ __forceinline__ void store(Stored* p, int64_t left, bool whole, const float (&v)[N]) {
    if (whole) {
        constexpr int EACH = sizeof(Stored) * N > 16 ? 16 / sizeof(Stored) : N;
#pragma unroll
        for (int first = 0; first < N; first += EACH) {
            Vec<Stored, EACH> run;
#pragma unroll
            for (int i = 0; i < EACH; i++) run[i] = narrow<Stored>(v[first + i]);
            run.store(p + first);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < left) p[i] = narrow<Stored>(v[i]);
    }
}
