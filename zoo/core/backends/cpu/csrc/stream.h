// Stores of what caches cannot hold.

// To memory, without reading the line that is replaced and without a place in the caches; p is aligned to the vector.
INLINE void store_past_caches(float* p, vf v) {
#if defined(ZOO_AVX512)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(ZOO_AVX2)
    _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
    _mm_stream_ps(p, (__m128)v);
#else
    store(p, v);
#endif
}

// Whoever hears from this thread hereafter finds what was stored past the caches.
INLINE void stores_arrived() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
