#pragma once
#include "../common.h"

namespace zoo {

// What a step of a program does with its registers. The first block are functions of up to three registers, lane by lane.
#define TILE_CODES(X)                                                                                                        \
    X(NEG) X(ABS) X(SIGN) X(EXP) X(LOG) X(SQRT) X(RSQRT) X(TANH) X(ERF) X(SIGMOID) X(FLOOR) X(ROUND) X(ISNAN) X(NOT)         \
    X(TO_BF16) X(TO_F16) X(ADD) X(SUB) X(MUL) X(DIV) X(MAXIMUM) X(MINIMUM) X(EQUAL) X(NOT_EQUAL) X(LESS) X(LESS_EQUAL)       \
    X(AND) X(OR) X(WHERE)                                                                                                    \
    X(LOAD)   /* register = part of input a, widened */                                                                      \
    X(STORE)  /* part of output `out` = register a, narrowed */                                                              \
    X(SPREAD) /* register = row register a, each value over its row */                                                       \
    X(SUM) X(MAX) X(MIN) /* row register = reduction of register a along each row */
enum TileCode : uint8_t {
#define TILE_CODE(name) TILE_##name,
    TILE_CODES(TILE_CODE)
#undef TILE_CODE
        TILE_CODE_COUNT
};

enum Stored : uint8_t { STORED_F32, STORED_BF16, STORED_F16, STORED_BOOL, STORED_I8, STORED_U8, STORED_I32, STORED_COUNT };

// Operands: 0 .. 15 registers, 16 .. 31 row registers, 32 .. 63 numbers.
constexpr int TILE_REGISTERS = 16, TILE_ROW_REGISTERS = 16, TILE_NUMBERS = 32, TILE_OPERANDS = 64, TILE_INPUTS = 16, TILE_OUTPUTS = 8;
constexpr i64 TILE_FLOATS = 512;         // of a register: 16 of them fill 32 KiB of L1
constexpr i64 TILE_WHOLE_FLOATS = 4096;  // of a register that holds one row, so that no reduction reads it twice

struct TileStep {
    uint8_t code, out, a, b, c;
    uint8_t store;  // 1 + the output that also takes the result; 0: none
};
struct TileSegment {
    bool row;  // its steps work on row registers, once for each block of rows; else on registers, tile by tile
    int begin, end;
};
struct TileInput {
    const char* data;
    Stored type;
    i64 stride[8], column;  // along the outer axes and along columns, in elements
    bool dense;             // neighbours in the space are neighbours in memory
};
struct TileOutput {
    char* data;
    Stored type;
    bool row;
};

// A program over a space of rows x columns; the rows are those of up to 7 outer axes. Outputs are dense.
struct Tiles {
    const TileStep* steps;
    const TileSegment* segments;
    int segment_count, registers, row_registers;
    bool by_rows;  // a row belongs to one task as a whole: something is reduced, or calculated once for each row
    bool whole;    // and to one tile
    TileInput input[TILE_INPUTS];
    TileOutput output[TILE_OUTPUTS];
    float number[TILE_NUMBERS];
    int axes;
    i64 size[8], rows, columns;
};

struct TileKernels {
    void (*run)(const Tiles&);
};

}  // namespace zoo
