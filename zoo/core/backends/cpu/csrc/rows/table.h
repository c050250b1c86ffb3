#pragma once
#include "../common.h"

namespace zoo {

// The kernels of this family and what each takes: name and "inputs > outputs", a letter for each array, `?` where there may be none.
//   e  rows * columns values as stored (float32, or 16-bit words)     b  rows * columns bytes of 0 and 1
//   f  rows * columns float32      c  columns float32     r  rows float32     i  rows int32
//   s  k[0] * columns float32      m  k[0] * k[1] float32     a  k[0] float32     h  k[0] values as stored
//   v  rows * k[0] float32         p  rows * k[0] int32      o  one int64
#define ROWS_OPS(X)                                                                                                      \
    X(unary, "e>e")                     /* k: function */                                                                \
    X(activation_grad, "ee>e")          /* value, g; k: activation */                                                    \
    X(swiglu, "ee>e")                   /* gate, up */                                                                   \
    X(swiglu_grad, "eee>ee")            /* gate, up, g -> of gate, of up */                                              \
    X(geglu, "h>e")                     /* rows of twice the columns; k: how many values */                              \
    X(binary, "eh?>e")                  /* x: the second, if a number; k: its length, function, second comes first */    \
    X(where, "bf?f?>f")                 /* x: the numbers for absent branches */                                         \
    X(widen, "e>f")                                                                                                      \
    X(narrow, "f>e")                                                                                                     \
    X(adamw, "ffff>fff")                /* p, g, m, v; x: see adamw() */                                                 \
    X(uniform, ">f")                    /* k: seed, offset */                                                            \
    X(normal, ">f")                     /* k: seed, offset */                                                            \
    X(dropout, "fo?>f")                 /* x, what is added to offset; x: p, 1 / (1 - p); k: seed, offset */             \
    X(softmax, "e>e")                                                                                                    \
    X(softmax_grad, "ee>e")             /* y, g */                                                                       \
    X(log_softmax, "e>e")                                                                                                \
    X(log_softmax_grad, "ee>e")         /* y, g */                                                                       \
    X(logsumexp, "f>r")                                                                                                  \
    X(cross_entropy, "fi>r")            /* logits, targets */                                                            \
    X(cross_entropy_grad, "fia>f")      /* logits, targets, g; k: how many g there are, one for all rows or one each */  \
    X(rms_norm, "ec>e")                 /* x: eps */                                                                     \
    X(rms_norm_grad, "fcf>fc")          /* x, weight, g -> of x, of weight; x: eps */                                    \
    X(layer_norm, "ec?c?>e")            /* x: eps */                                                                     \
    X(layer_norm_grad, "fc?f>fc?c?")    /* x, weight, g -> of x, weight, bias; x: eps */                                 \
    X(batch_norm, "eccc?c?>e")          /* x, mean, var, weight, bias; x: eps */                                         \
    X(group_norm, "ec?c?>em?m?")        /* -> y, mean, variance; k: samples, groups, activation; x: eps */               \
    X(group_norm_grad, "fc?f>fc?c?")    /* x, weight, g -> of x, weight, bias; k: samples, groups; x: eps */             \
    X(column_sums, "f>s")               /* of each of k[0] blocks of rows */                                             \
    X(rope, "eaa>e")                    /* x, cos, sin; k: size of cos, heads, half, interleaved */                      \
    X(topk, "f>vp")                     /* k: how many */                                                                \
    X(scatter_add, "sif>s")             /* x, places, updates; k: lines of x */

struct Rows {
    i64 rows, columns;
    int storage;  // of `e`: 0 float32, 1 bfloat16, 2 float16
    const void* in[5];
    void* out[3];
    double x[8];
    i64 k[4];
    int* strange;  // set by a kernel that met what it has no code for: a target that is no column
};

// Runs of bytes from one place to another, along up to 8 axes; a source stride of 0 repeats.
struct Move {
    int axes;
    i64 shape[8], from[8], to[8];  // strides in bytes, but for the last axis, along which both are contiguous
    i64 run;                       // bytes of the last axis
    const char* x;
    char* y;
};

// Rows of texts that come to lie behind the first positions[text] of a cache; those outside it are left out.
struct Place {
    i64 texts, room, rows, run;  // x (texts, room, run bytes), update (texts, rows, run bytes)
    char* x;
    const char* update;
    const int32_t* positions;
};

// Windows over two spatial axes; all arrays are contiguous.
struct Windows {
    i64 batch, size[2], channels, out[2], window[2], stride[2], pad[2];
    const float* x;  // (batch, size, channels)
    float* y;        // (batch, out, channels); given, where the gradient is asked for
    const float* g;  // as y; null: no gradient
    float* dx;       // as x
    bool maximum;    // else the sum
};

struct RowsKernels {
#define MEMBER(name, signature) void (*name)(const Rows&);
    ROWS_OPS(MEMBER)
#undef MEMBER
    void (*windows)(const Windows&);
    void (*move)(const Move&);
    void (*place)(const Place&);
};

}  // namespace zoo
