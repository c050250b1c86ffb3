// The machine's own instructions: the only file with PTX in it. What it defines, and no more, is defined a second time in
// zoo/core/testing/emulator/intrinsics.cuh, where a processor does it; kernels are the same text in both worlds.
//
// A fragment of mma m16n8k16 lies in a warp as PTX says (lane = 4 g + t):
//   a[0] row g,  k 2t 2t+1   a[1] row g+8, the same k   a[2], a[3] the same rows, k + 8
//   b[0] k 2t 2t+1, column g   b[1] k + 8
//   d[0] d[1] row g, columns 2t 2t+1   d[2] d[3] row g+8
// and of m16n8k32 in 8 bits with four k in a register: k 4t..4t+3, and k + 16 where above it is k + 8.

#define EMULATED 0

#define SHARED(type, name, size) __shared__ __align__(16) type name[size]
#define DYNAMIC_SHARED(type, name)                               \
    extern __shared__ __align__(16) unsigned char shared_bytes_[]; \
    type *name = reinterpret_cast<type *>(shared_bytes_)

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

// The emulator checks it; here the hardware does.
__device__ __forceinline__ void check_aligned(const void *, int) {}

__device__ __forceinline__ float float_of_half(uint16_t bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}

__device__ __forceinline__ uint16_t half_of_float(float f) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
    return bits;
}

__device__ __forceinline__ float float_of_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ uint16_t bfloat16_of_float(float f) {
#if ARCH >= 80
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(f));
    return bits;
#else
    uint32_t u = __float_as_uint(f);
    return (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
#endif
}

// d = a b + d, in float32. Before sm_80 the tensor cores know half precision with k = 8, and no bfloat16.
template <typename Half> __device__ __forceinline__ void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) = delete;

#if ARCH >= 80
template <> __device__ __forceinline__ void mma_m16n8k16<half>(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <> __device__ __forceinline__ void mma_m16n8k16<bfloat16>(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k32_s8(int d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
__device__ __forceinline__ void mma_m16n8k8_(float d[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
}

template <> __device__ __forceinline__ void mma_m16n8k16<half>(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_m16n8k8_(d, a[0], a[1], b[0]);
    mma_m16n8k8_(d, a[2], a[3], b[1]);
}

__device__ __forceinline__ void mma_m8n8k16_s8_(int &d0, int &d1, uint32_t a, uint32_t b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d0), "+r"(d1)
                 : "r"(a), "r"(b));
}

__device__ __forceinline__ void mma_m16n8k32_s8(int d[4], const uint32_t a[4], const uint32_t b[2]) {
    mma_m8n8k16_s8_(d[0], d[1], a[0], b[0]);
    mma_m8n8k16_s8_(d[0], d[1], a[2], b[1]);
    mma_m8n8k16_s8_(d[2], d[3], a[1], b[0]);
    mma_m8n8k16_s8_(d[2], d[3], a[3], b[1]);
}
#endif

__device__ __forceinline__ uint32_t shared_address_(const void *p) { return uint32_t(__cvta_generic_to_shared(p)); }

// 8x8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned; of x2 the lanes 0 to 15 count). r[i] of lane l: row l / 4, columns 2 (l % 4) and the next, of matrix i; _trans:
// of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address_(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address_(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address_(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address_(row))
                 : "memory");
}

// 16 bytes from global to shared memory, both aligned, on their way until cp_async_wait; zeros, and nothing read, where not
// `valid`. Before sm_80 a plain copy.
__device__ __forceinline__ void cp_async16(void *shared, const void *global, bool valid) {
#if ARCH >= 80
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address_(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    *static_cast<uint4 *>(shared) = valid ? *static_cast<const uint4 *>(global) : make_uint4(0, 0, 0, 0);
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#if ARCH >= 80
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all of this thread's groups but the latest `pending` have arrived. Other threads see them after __syncthreads().
template <int pending> __device__ __forceinline__ void cp_async_wait() {
#if ARCH >= 80
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// Four products of signed bytes, added to c.
__device__ __forceinline__ int dp4a(int a, int b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
