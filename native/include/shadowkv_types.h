/*
 * Plain data of the shadowkv C ABI: enumerations, tables and one parameter struct an operation.
 *
 * The kernels of both backends include this file and nothing else of the ABI. Every pointer is an
 * address in the memory of the context's backend (host memory for the CPU, device memory for CUDA)
 * unless its comment says "host". Structs that an operation takes begin with their own size, which
 * lets a library tell an older caller from a newer one. Sizes and offsets are counted in 64 bits.
 *
 * Letters used in shapes:
 *   H query heads, K key/value heads, G = H/K, D head dim, C tokens a chunk, r rank,
 *   B sessions in the batch, S chunks selected for each key/value head, [a][b][c] row-major.
 */
#ifndef SHADOWKV_TYPES_H
#define SHADOWKV_TYPES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t skv_status;

enum {
  SKV_OK = 0,
  SKV_INVALID_ARGUMENT = 1,
  SKV_UNSUPPORTED = 2,
  SKV_OUT_OF_HOST_MEMORY = 3,
  SKV_OUT_OF_DEVICE_MEMORY = 4,
  SKV_DEVICE_ERROR = 5,
  SKV_NOT_AVAILABLE = 6,
  SKV_INTERNAL = 7
};

enum { SKV_BACKEND_CPU = 0, SKV_BACKEND_CUDA = 1 };

/* Queues of a context's work, see skv_use_lane. */
enum { SKV_LANES = 3 };

/*
 * Element types. I8, symmetric, is for landmarks, with one scale a landmark, and for coefficients, with one scale a
 * direction. Those with one scale a chunk and head are for values only:
 *   F8_E4M3   eight bits, the scale is the largest magnitude / 448
 *   F12_E4M7  twelve bits: BF16 with four bits of exponent, counted from the largest of the chunk and head; numbers of
 *             BF16 down to 2^-14 of the largest's power of two are kept as they are, smaller ones to within 2^-22 of it. The
 *             scale is a power of two, 2^-8 times that of the largest
 *   F6_E2M3   six bits: e4m3 of which only the lowest four exponents are used, the scale is the largest magnitude
 *             / (7.5 / 64)
 * F12 and F6 are packed: a chunk of one head, n = C*D elements, is one unit of n * 12 / 8 or n * 6 / 8 bytes. They live
 * in host memory alone; slots hold BF16 for F12_E4M7, and F8_E4M3 of the same scale for F6_E2M3.
 *   F12_E4M7  n bytes: the lowest exponent bit and the mantissa of element i; then n/2 bytes: sign and upper exponent
 *             bits of element i in the lower half of byte i, of element i + n/2 in the upper half
 *   F6_E2M3   n/2 bytes: the lowest exponent bit and the mantissa of element i in the lower half of byte i, of element
 *             i + n/2 in the upper half; then n/4 bytes: sign and upper exponent bit of elements i, i + n/4, i + n/2 and
 *             i + 3n/4, from the lowest two bits of byte i upwards
 */
enum { SKV_F32 = 0, SKV_BF16 = 1, SKV_F16 = 2, SKV_F8_E4M3 = 3, SKV_I8 = 4, SKV_F12_E4M7 = 5, SKV_F6_E2M3 = 6 };

/* Which elements of a head rotate together: (i, i + rotary_dim/2), or (2i, 2i + 1). */
enum { SKV_HALF_SPLIT = 0, SKV_INTERLEAVED = 1 };

/* The operations, as skv_workspace_bytes takes them. */
enum {
  SKV_OP_ROPE = 0,
  SKV_OP_STORE_TOKENS = 1,
  SKV_OP_LOW_RANK_FACTOR = 2,
  SKV_OP_LOW_RANK_PROJECT = 3,
  SKV_OP_REBUILD_KEYS = 4,
  SKV_OP_LANDMARK_BUILD = 5,
  SKV_OP_OUTLIER_SELECT = 6,
  SKV_OP_CHUNK_GATHER = 7,
  SKV_OP_VALUE_STORE = 8,
  SKV_OP_LANDMARK_TOPK = 9,
  SKV_OP_RERANK = 10,
  SKV_OP_CACHE_PLAN = 11,
  SKV_OP_VALUE_GATHER = 12,
  SKV_OP_SPARSE_ATTENTION = 13,
  SKV_OP_DENSE_ATTENTION = 14,
  SKV_OP_PREFILL_ATTENTION = 15,
  SKV_OP_DECODE_LAYER = 16,
  SKV_OP_DENSE_DECODE_LAYER = 17,
  SKV_OP_MATMUL = 18,
  SKV_OP_RMS_NORM = 19,
  SKV_OP_SILU_MULTIPLY = 20,
  SKV_OP_EMBED = 21,
  SKV_OP_ADD = 22,
  SKV_OP_CONVERT = 23,
  SKV_OP_ARGMAX = 24,
  SKV_OP_RANDOM_FILL = 25,
  SKV_OP_MOMENT_UPDATE = 26,
  SKV_OP_VALUE_FIT = 27
};

/* Limits that both backends share. */
enum {
  SKV_MAX_HEAD_DIM = 256,
  SKV_MAX_KEY_VALUE_HEADS = 32,
  SKV_MAX_GROUP = 16,
  SKV_MIN_RANK = 16,
  SKV_MAX_RANK = 256,
  SKV_MAX_SELECT = 1024,
  SKV_MAX_SLOTS = 4096,
  SKV_MAX_BATCH = 1024
};

/* A context: one backend, one stream, one workspace. */
typedef struct skv_context_params {
  uint32_t struct_size;
  int32_t backend;       /* SKV_BACKEND_* */
  int32_t ordinal;       /* CUDA: which device */
  int32_t threads;       /* CPU: how many threads compute; 0: all processors of the process */
  uint64_t stream;       /* CUDA: the caller's cudaStream_t as an address; with own_stream unset, 0 is the default stream */
  int32_t own_stream;    /* CUDA: not 0: the context makes and owns a non-blocking stream */
  int32_t instruction_set; /* CPU: 0 best available, 1 portable, 2 AVX2, 3 AVX-512, 4 AVX-512 with bf16 products; for tests and comparisons */
  const char *blas_path; /* host; file or folder in which to look for BLAS/LAPACK (CPU) or cuBLAS (CUDA) first; several separated by ':'; "none": do without; may be null */
} skv_context_params;

typedef struct skv_device_info {
  uint32_t struct_size;
  int32_t compute_major, compute_minor; /* CUDA: compute capability; CPU: 0 */
  int32_t multiprocessors;              /* CUDA: SMs; CPU: processors */
  int64_t total_memory, free_memory;    /* bytes */
  int32_t driver_version;               /* CUDA: as cuDriverGetVersion gives it; CPU: 0 */
  int32_t instruction_set;              /* CPU: as in skv_context_params */
  char name[256];                       /* zero-terminated */
} skv_device_info;

/*
 * Rotary tables as data. The rotation of position p is the complex product of coarse row
 * p / fine_rows and fine row p % fine_rows, so a million positions need a few thousand rows.
 * The scale of YaRN and longrope is already in the coarse table.
 */
typedef struct skv_rope {
  const float *coarse;  /* [coarse_rows][rotary_dim/2][2]: cos, sin of (row * fine_rows) * frequency, times scale */
  const float *fine;    /* [fine_rows][rotary_dim/2][2]: cos, sin of row * frequency */
  int32_t coarse_rows;
  int32_t fine_rows;    /* a power of two */
  int32_t rotary_dim;   /* even, <= D; the elements behind it pass through unchanged and unscaled */
  int32_t pairing;      /* SKV_HALF_SPLIT or SKV_INTERLEAVED */
  float scale;          /* what the coarse table was multiplied by; an inverse rotation divides by its square */
} skv_rope;

/* What is fixed for a layer of a model and the cache of it. */
typedef struct skv_geometry {
  int32_t query_heads;      /* H */
  int32_t key_value_heads;  /* K */
  int32_t head_dim;         /* D */
  int32_t chunk;            /* C: 8 or 16 */
  int32_t rank;             /* r: columns of the coefficients, basis rows a head */
  int32_t storage_type;     /* keys, basis, outliers, recent window: F32, BF16, F16 (CUDA: BF16) */
  int32_t value_type;       /* values in host memory: storage_type, F8_E4M3, F12_E4M7 or F6_E2M3; in slots: the same, unpacked. CUDA: packed ones need slots */
  int32_t landmark_type;    /* storage_type, or I8 */
  int32_t coefficient_type; /* storage_type, or I8: whole numbers from -127 to 127, times the scale that is in the direction's basis rows */
  int32_t window;           /* tokens that the recent window holds, a multiple of C */
  int32_t slots;            /* slots a key/value head, of values, or of keys where a layer has slot_keys; 0: values are read in place, slot = chunk */
} skv_geometry;

/*
 * One layer of one session in a shadow cache. Arrays of these live in the backend's memory, so that
 * a captured step sees a session's tables change without being captured again. Chunk ids are
 * absolute: chunk c holds the tokens at positions [c*C, (c+1)*C).
 */
typedef struct skv_shadow_layer {
  void *coefficients;      /* [chunk_capacity*C][r] coefficient_type, row = position */
  void *basis;             /* [K][r][D] storage_type; rows orthonormal over the joint width K*D, or each head of them divided by its scale; I8 coefficients: each row times its direction's scale */
  void *landmarks;         /* [K][chunk_capacity][D] landmark_type */
  float *landmark_scales;  /* [K][chunk_capacity], I8 only */
  float *radius;           /* [K][chunk_capacity]; negative: the chunk is not in the index of this head */
  void *outlier_keys;      /* [K][outlier_capacity][C][D] storage_type, rotated */
  void *outlier_values;    /* [K][outlier_capacity][C][D] storage_type */
  void *recent_keys;       /* [K][window][D] storage_type, rotated; position p is row p % window */
  void *recent_values;     /* [K][window][D] storage_type */
  void *values;            /* pinned host memory: [K][chunk_capacity][C][D] value_type; CUDA: aligned to 16 bytes */
  float *value_scales;     /* [K][chunk_capacity], types with a scale only */
  void *slot_values;       /* [K][slots][C][D] value_type, unpacked; not used, and may be null, with slots = 0 or slot_keys */
  int32_t *slot_chunk;     /* [K][slots]: which chunk a slot holds, -1 none */
  int32_t *slot_stamp;     /* [K][slots]: step in which it was last selected */
  int64_t chunk_capacity;
  int64_t outlier_capacity;
  float *moments;          /* [K][D*D + 2*D + 4] or null: sums over the indexed tokens of a head, of v k^T ([D][D], row = element of v), k, v and 1 (three floats unused) */
  void *slot_keys;         /* [K][slots][C][D] storage_type, rotated, or null; CPU only. Not null: rebuilt keys are rounded to storage_type wherever they are used, also with slots = 0, and values are read in place. With slots > 0, skv_decode_layer keeps these keys in the slots and rebuilds only those of chunks that are in none: of its shortlist where it reranks (slots >= shortlist), else of its selection; all sessions of a batch or none have it. Whoever changes the coefficients of a chunk sets slot_chunk to -1 where that chunk is. The other operations do not fill such slots: after skv_cache_plan on them, slot_chunk is to be set to -1 */
  void *value_basis;       /* [K][r][D] storage_type or null: v ~ coefficients . value_basis, for the tokens that a rerank drops */
} skv_shadow_layer;

/* One layer of one session in a dense cache. */
typedef struct skv_dense_layer {
  void *keys;        /* [K][capacity][D] storage_type, rotated; row = position */
  void *values;      /* [K][capacity][D] storage_type */
  int64_t capacity;  /* tokens */
} skv_dense_layer;

/* Where a session stands in a step; the same for all its layers. An array [B] in the backend's memory. */
typedef struct skv_session_state {
  int64_t length;          /* tokens attended, the new one included: its position is length - 1; 0: the row of the batch is idle and its output is zero */
  int64_t recent_begin;    /* first position of the recent window, a multiple of C; earlier positions are indexed or outliers */
  int32_t indexed_chunks;  /* recent_begin / C */
  int32_t outliers;        /* outlier chunks in use, the same for every head */
  int32_t step;            /* stamp of this step, increasing */
  int32_t reserved;
} skv_session_state;

/* Rotates heads. output may be input. */
typedef struct skv_rope_params {
  uint32_t struct_size;
  int32_t type;              /* of input and output: F32, BF16, F16 */
  const void *input;         /* [count][heads][D], tokens input_stride elements apart */
  void *output;              /* [count][heads][D], tokens output_stride elements apart */
  int64_t count;
  int64_t input_stride, output_stride; /* elements; 0: heads*D */
  int64_t input_head_stride; /* elements between the input's heads; 0: D */
  int32_t heads, head_dim;
  int64_t first_position;    /* of row 0, the others follow; unless positions is given */
  const int64_t *positions;  /* [count] or null */
  int32_t inverse;           /* not 0: rotate back */
  skv_rope rope;
} skv_rope_params;

/*
 * Takes tokens as a model makes them and stores them as a cache keeps them: rotated keys and values
 * head-major in a ring (row = position % capacity), and the keys before RoPE token-major.
 */
typedef struct skv_store_tokens_params {
  uint32_t struct_size;
  int32_t input_type;        /* F32, BF16, F16 */
  int32_t storage_type;      /* F32, BF16, F16 */
  int32_t key_value_heads, head_dim;
  int64_t count, first_position;
  const void *keys;          /* [count][K][D] before RoPE, or null */
  const void *values;        /* [count][K][D], or null */
  int64_t key_stride, value_stride; /* elements between tokens; 0: K*D */
  void *rotated_keys;        /* [K][capacity][D], or null */
  void *raw_keys;            /* [capacity][K*D], or null */
  void *stored_values;       /* [K][capacity][D], or null */
  int64_t capacity;          /* tokens */
  skv_rope rope;
} skv_store_tokens_params;

/*
 * Low-rank factorization: keys ~ coefficients . basis, by block subspace iteration on the Gram matrix.
 * Not part of the hot path; may wait for the stream.
 *
 * With head_scales, what is factored are the keys with every head multiplied by its scale, a power of two that brings
 * the heads to the same mean square within a factor of two, and the basis of a head is divided by it: what heads of
 * short keys lose then weighs as much as what heads of long ones lose, as it does in their attention.
 *
 * I8 coefficients are whole numbers: a direction's divided by its scale, which is a 127th of twice the largest of them
 * (those of later tokens may be larger), and rounded to the nearest, ties to even. The basis rows of the direction are
 * multiplied by it, so that keys ~ coefficients . basis as ever. Of r columns, r / 10 (rounded down) refine a
 * direction: columns 2i and 2i + 1 together are direction i, the second in steps of 1/254 of the first's scale, and the
 * columns behind these pairs are the further directions in their order. So the first directions, which hold what keys
 * have in common, are as good as with 16 bits, and the last r / 10 of the rank are not kept, nor counted in the energy. A
 * direction of zeros has a scale of 0, and so has one whose energy is at most 2^-24 of the largest one's (BF16: 2^-20),
 * which is rounding alone: its basis rows and coefficients are zero.
 */
typedef struct skv_low_rank_factor_params {
  uint32_t struct_size;
  int32_t type;              /* of keys and basis: F32, BF16, F16 */
  int32_t coefficient_type;  /* type, or I8 */
  const void *keys;          /* [tokens][width] before RoPE, width = K*D */
  int64_t tokens;
  int64_t key_stride;        /* elements between tokens; 0: width */
  int32_t key_value_heads, head_dim;
  int32_t rank;              /* rank <= width; directions beyond min(tokens, width) come out as zero rows */
  int32_t stored_rank;       /* r of the layouts, >= rank; the rows and columns behind rank are zeroed; 0: rank */
  int32_t oversampling;      /* extra directions iterated on; 0: default */
  int32_t iterations;        /* 0: default */
  void *coefficients;        /* [tokens][stored_rank] */
  void *basis;               /* [K][stored_rank][D] */
  float *singular_values;    /* [rank], descending, or null; with head_scales, of the scaled keys, and so is energy */
  float *energy;             /* [2]: sum of squares of the keys, and the share of it that the basis captures (0..1), or null */
  float *head_scales;        /* [K] or null: written */
  float *coefficient_scales; /* [stored_rank], I8 only: written */
} skv_low_rank_factor_params;

/* Projects new keys onto an existing basis. I8 coefficients beyond 127 become 127, which the residual tells. */
typedef struct skv_low_rank_project_params {
  uint32_t struct_size;
  int32_t type;              /* of keys and basis */
  int32_t coefficient_type;  /* type, or I8 */
  const void *keys;          /* [count][width] before RoPE */
  int64_t count;
  int64_t key_stride;        /* elements; 0: width */
  int32_t key_value_heads, head_dim;
  int32_t rank;              /* r */
  const void *basis;         /* [K][r][D] */
  void *coefficients;        /* [count][r] */
  float *residual;           /* [count]: |x - x'|^2 / |x|^2 (0 for x = 0), or null; of the keys as they are */
  const float *head_scales;  /* [K] or null: as skv_low_rank_factor wrote them with the basis */
  const float *coefficient_scales; /* [r], I8 only: as skv_low_rank_factor wrote them with the basis */
} skv_low_rank_project_params;

/* Rebuilds rotated keys from coefficients into a ring: rewinding, tests, comparisons. */
typedef struct skv_rebuild_keys_params {
  uint32_t struct_size;
  int32_t type;              /* of keys and basis */
  int32_t coefficient_type;  /* type, or I8 */
  const void *coefficients;  /* [..][r], row = position */
  const void *basis;         /* [K][r][D] */
  int32_t key_value_heads, head_dim, rank;
  int64_t first_position, count;
  void *rotated_keys;        /* [K][capacity][D], row = position % capacity */
  int64_t capacity;
  skv_rope rope;
} skv_rebuild_keys_params;

/* Landmarks of whole chunks, from rotated keys in a ring. */
typedef struct skv_landmark_build_params {
  uint32_t struct_size;
  int32_t storage_type, landmark_type;
  int32_t key_value_heads, head_dim, chunk;
  const void *rotated_keys;  /* [K][capacity][D], row = position % capacity */
  int64_t capacity;
  int64_t first_chunk, chunks;
  void *landmarks;           /* [K][chunk_capacity][D]: mean of the members; entries [first_chunk, first_chunk+chunks) are written */
  float *landmark_scales;    /* [K][chunk_capacity], I8 only */
  float *radius;             /* [K][chunk_capacity]: largest distance of a member from the mean as stored */
  float *cosine;             /* [K][chunk_capacity]: smallest cosine of a member with the mean, or null */
  int64_t chunk_capacity;
} skv_landmark_build_params;

/* The chunks that a landmark describes worst: the smallest cosines, ties by the lower id. */
typedef struct skv_outlier_select_params {
  uint32_t struct_size;
  int32_t key_value_heads;
  const float *cosine;       /* [K][chunk_capacity], of which the first `chunks` count */
  int64_t chunks, chunk_capacity;
  int32_t count;             /* <= chunks */
  int32_t *ids;              /* [K][count], ascending */
  float *radius;             /* [K][chunk_capacity] or null: set to -1 for the selected */
} skv_outlier_select_params;

/* Copies chunks of rings to consecutive places: outliers at their sealing. */
typedef struct skv_chunk_gather_params {
  uint32_t struct_size;
  int32_t type;
  int32_t key_value_heads, head_dim, chunk;
  const void *source;        /* [K][capacity][D], row = position % capacity */
  int64_t capacity;
  const int32_t *ids;        /* [K][count] chunk ids */
  int32_t count;
  void *target;              /* [K][target_capacity][C][D]; places [target_first, target_first+count) are written */
  int64_t target_first, target_capacity;
} skv_chunk_gather_params;

/* Moves values of whole chunks to host memory, as they are or in fewer bits with one scale a chunk and head. */
typedef struct skv_value_store_params {
  uint32_t struct_size;
  int32_t storage_type, value_type;
  int32_t key_value_heads, head_dim, chunk;
  const void *source;        /* [K][capacity][D], row = position % capacity */
  int64_t capacity;
  int64_t first_chunk, chunks;
  void *values;              /* pinned host: [K][chunk_capacity][C][D] value_type; CUDA: aligned to 16 bytes for types with a scale */
  float *value_scales;       /* [K][chunk_capacity], types with a scale only: written */
  int64_t chunk_capacity;
} skv_value_store_params;

/*
 * Adds whole chunks to the moments of a layer, or takes them away: per key/value head, over the tokens of
 * those chunks that are in its index, the sums of v k^T, k, v and 1 (skv_shadow_layer.moments). They say what
 * value the tokens left out of a selection have for a query, were keys and values jointly normal.
 */
typedef struct skv_moment_update_params {
  uint32_t struct_size;
  int32_t storage_type;
  int32_t key_value_heads, head_dim, chunk;
  const void *rotated_keys;  /* [K][capacity][D], row = position % capacity */
  const void *values;        /* [K][capacity][D], row = position % capacity */
  int64_t capacity;
  int64_t first_chunk, chunks;
  const float *radius;       /* [K][chunk_capacity]: chunks of negative radius do not count; or null: all do */
  int64_t chunk_capacity;
  int32_t replace;           /* not 0: what the moments hold is forgotten first; they need not have been written */
  int32_t subtract;          /* not 0: the chunks are taken away */
  float *moments;            /* [K][D*D + 2*D + 4] */
} skv_moment_update_params;

/*
 * Fits the map from coefficients to values, v ~ a . value_basis, by least squares over the given tokens, without
 * a constant: row j of a head is sum(a_j v) / sum(a_j^2). The columns of the coefficients must be orthogonal over
 * those tokens, as skv_low_rank_factor makes them of the tokens that it is given: each row is fitted by itself.
 * A column whose sum(a_j^2) is at most 2^-24 of the largest one's (BF16: 2^-20, since the basis that
 * coefficients are taken with is rounded) is rounding alone and gives a row of zeros, as a column of zeros does. I8
 * columns, which have scales of their own, are not compared: of them only one of zeros gives a row of zeros, and rows
 * are for the whole numbers, as those of the basis of keys; a refinement's are zero. Accumulates in fp32 and rounds
 * once, at the end.
 */
typedef struct skv_value_fit_params {
  uint32_t struct_size;
  int32_t storage_type;      /* of values and value_basis */
  int32_t coefficient_type;  /* storage_type, or I8 */
  int32_t key_value_heads, head_dim, rank;
  const void *coefficients;  /* [..][r], row = position */
  const void *values;        /* [K][capacity][D], row = position % capacity */
  int64_t capacity;          /* tokens, >= tokens */
  int64_t first_position, tokens; /* tokens may be 0: rows of zeros */
  void *value_basis;         /* [K][r][D] */
} skv_value_fit_params;

/*
 * Picks chunks by landmark. Logit of chunk c for query head h:
 * (q_h . mean_c + radius_weight * |q_h| * radius_c) / sqrt(D); score of a chunk for a key/value head: the
 * largest, over its G query heads, of logit - logsumexp over all indexed chunks. The `select` best are
 * taken (ties: the lower id); fewer when fewer are indexed.
 */
typedef struct skv_landmark_topk_params {
  uint32_t struct_size;
  int32_t query_type;        /* F32, BF16, F16 */
  skv_geometry geometry;
  int32_t batch;
  const void *queries;       /* [B][H][D] rotated */
  const skv_shadow_layer *layers;   /* [B] */
  const skv_session_state *states;  /* [B] */
  float radius_weight;
  int32_t select;            /* S */
  int64_t max_chunks;        /* no session of the batch has more indexed chunks; sizes the launch */
  int32_t *selected;         /* [B][K][S] chunk ids, ascending */
  int32_t *selected_count;   /* [B][K] */
  float *mass;               /* [B][K] or null: softmax weight that the selection holds among the landmarks, mean over the G heads */
  float *tail;               /* [B][H] or null: natural log of the weight of the indexed tokens not selected, by their landmarks without radius: of the sum of C * exp(q_h . mean_c / sqrt(D)); -infinity when all are selected. Exact to rounding of the same sum over all chunks */
} skv_landmark_topk_params;

/*
 * Replaces a shortlist by the `select` chunks of largest exact attention mass: keys are rebuilt and
 * scored; mass of a chunk for a key/value head: the largest, over its G query heads, of the chunk's
 * logsumexp minus the shortlist's.
 */
typedef struct skv_rerank_params {
  uint32_t struct_size;
  int32_t query_type;
  skv_geometry geometry;
  int32_t batch;
  const void *queries;       /* [B][H][D] rotated */
  const skv_shadow_layer *layers;
  const skv_session_state *states;
  skv_rope rope;
  int32_t shortlist_stride;  /* entries of a shortlist row */
  const int32_t *shortlist;        /* [B][K][shortlist_stride], ascending */
  const int32_t *shortlist_count;  /* [B][K] */
  int32_t select;            /* S <= shortlist_stride */
  int32_t *selected;         /* [B][K][S], ascending */
  int32_t *selected_count;   /* [B][K] */
  float *tail;               /* [B][H] or null: what landmark_topk left for the shortlist; the shortlisted chunks not selected are added with their exact weight, with `dropped` only of layers without value_basis */
  float *dropped;            /* [B][H] or null: natural log of the exact weight of the shortlisted tokens not selected: of the sum of p = exp(q_h . key / sqrt(D)) over them; -infinity: there are none, or the layer has no value_basis */
  float *dropped_values;     /* [B][H][D], with dropped: their value, sum(p * coefficients) / sum(p) . value_basis; not written where dropped is -infinity */
} skv_rerank_params;

/*
 * Decides which slot each selected chunk is in or goes to. A chunk that is resident keeps its slot; the
 * others go into the slots not selected in this step, least recently selected first (ties: the lower
 * slot). Updates slot_chunk and slot_stamp. Needs slots >= S. With slots = 0: slot = chunk, nothing to fetch.
 */
typedef struct skv_cache_plan_params {
  uint32_t struct_size;
  skv_geometry geometry;
  int32_t batch;
  const skv_shadow_layer *layers;
  const skv_session_state *states;
  int32_t select;                 /* S */
  const int32_t *selected;        /* [B][K][S] ascending */
  const int32_t *selected_count;  /* [B][K] */
  int32_t *selected_slot;         /* [B][K][S] */
  int32_t *fetch_chunk;           /* [B][K][S] ascending */
  int32_t *fetch_slot;            /* [B][K][S] */
  int32_t *fetch_count;           /* [B][K] */
} skv_cache_plan_params;

/* Brings the values of a fetch list from host memory into their slots. */
typedef struct skv_value_gather_params {
  uint32_t struct_size;
  skv_geometry geometry;
  int32_t batch;
  const skv_shadow_layer *layers;
  int32_t select;                 /* S */
  const int32_t *fetch_chunk;     /* [B][K][S] */
  const int32_t *fetch_slot;      /* [B][K][S] */
  const int32_t *fetch_count;     /* [B][K] */
  int32_t blocks;                 /* CUDA: thread blocks to use; 0: default */
} skv_value_gather_params;

/*
 * Attention of one query token a session over its selected chunks (keys rebuilt on the fly), outliers
 * and recent window. Softmax and sums in fp32.
 */
typedef struct skv_sparse_attention_params {
  uint32_t struct_size;
  int32_t query_type, output_type;
  skv_geometry geometry;
  int32_t batch;
  const void *queries;       /* [B][H][D] rotated */
  const skv_shadow_layer *layers;
  const skv_session_state *states;
  skv_rope rope;
  int32_t select;                 /* S */
  const int32_t *selected;        /* [B][K][S] */
  const int32_t *selected_slot;   /* [B][K][S] */
  const int32_t *selected_count;  /* [B][K] */
  const float *tail;         /* [B][H] or null: natural log of the weight of the indexed tokens not selected. They take part in the softmax as one token of that weight and the value mean(v) + cov(v, k) q_h / sqrt(D), by the moments of the layer. No such part: where the weight is not finite, a layer has no moments or a head none of its tokens in them */
  const float *dropped;      /* [B][H] or null: natural log of the weight of a further part of the softmax, as skv_rerank gives it; no such part where it is not finite */
  const float *dropped_values; /* [B][H][D], with dropped: the value of that part */
  void *output;              /* [B][H][D] */
  float *log_sum_exp;        /* [B][H] or null: natural log of the softmax denominator */
} skv_sparse_attention_params;

/* Exact attention of one query token a session over a dense cache. */
typedef struct skv_dense_attention_params {
  uint32_t struct_size;
  int32_t query_type, output_type;
  skv_geometry geometry;     /* chunk, rank, window and slots are not used */
  int32_t batch;
  const void *queries;       /* [B][H][D] rotated */
  const skv_dense_layer *layers;    /* [B] */
  const skv_session_state *states;  /* [B]: length counts */
  int64_t max_length;        /* no session of the batch is longer; sizes the launch */
  void *output;              /* [B][H][D] */
  float *log_sum_exp;        /* [B][H] or null */
} skv_dense_attention_params;

/* Causal attention of `count` consecutive query tokens over the keys up to and with each. */
typedef struct skv_prefill_attention_params {
  uint32_t struct_size;
  int32_t query_type, output_type;
  skv_geometry geometry;     /* chunk, rank, window and slots are not used */
  const void *queries;       /* [count][H][D] rotated, tokens query_stride elements apart */
  int64_t query_stride;      /* elements; 0: H*D */
  int64_t count, first_position;
  const void *keys;          /* [K][capacity][D] rotated, row = position */
  const void *values;        /* [K][capacity][D] */
  int64_t capacity;          /* >= first_position + count */
  void *output;              /* [count][H][D] */
} skv_prefill_attention_params;

/* What a step did, one an entry of the batch; added to, so that a caller may sum over layers. */
typedef struct skv_decode_counters {
  int64_t selected;  /* chunks selected, over the heads */
  int64_t fetched;   /* of which were not resident; with slot_keys and slots: chunks whose keys were rebuilt, of the shortlist where there is one */
  double mass;       /* captured landmark mass, summed over the heads */
} skv_decode_counters;

/*
 * One layer of one decode step for a ragged batch: rotates the queries and keys of the new tokens, adds the
 * new tokens to the recent windows, selects, (reranks,) plans, fetches, attends. Composed of the kernels
 * above; the fetch overlaps with the work of other sessions.
 */
typedef struct skv_decode_layer_params {
  uint32_t struct_size;
  int32_t input_type;        /* of queries, keys, values and output */
  skv_geometry geometry;
  int32_t batch;
  const void *queries;       /* [B][H][D] before RoPE */
  const void *keys;          /* [B][K][D] before RoPE */
  const void *values;        /* [B][K][D] */
  int64_t query_stride, key_stride, value_stride; /* elements between sessions; 0: dense */
  const skv_shadow_layer *layers;
  const skv_session_state *states;
  skv_rope rope;
  float radius_weight;
  int32_t select;            /* S */
  int32_t shortlist;         /* chunks to rerank, > S; 0: no rerank */
  int64_t max_chunks;        /* no session of the batch has more indexed chunks */
  int32_t groups;            /* CUDA: how many parts of the batch are pipelined; 0: default */
  int32_t tail;              /* not 0: the tokens left out take part by their landmarks and the layers' moments; with a shortlist and a layer's value_basis, those that the rerank drops by their exact weight and predicted value */
  void *output;              /* [B][H][D] */
  skv_decode_counters *counters; /* [B] or null */
} skv_decode_layer_params;

/* One layer of one decode step of a dense cache: rotate, append, attend exactly. */
typedef struct skv_dense_decode_layer_params {
  uint32_t struct_size;
  int32_t input_type;
  skv_geometry geometry;
  int32_t batch;
  const void *queries, *keys, *values; /* as in skv_decode_layer_params */
  int64_t query_stride, key_stride, value_stride;
  const skv_dense_layer *layers;
  const skv_session_state *states;
  skv_rope rope;
  int64_t max_length;
  void *output;              /* [B][H][D] */
} skv_dense_decode_layer_params;

/* output = input . weight^T (+ bias) (+ output). Accumulates in fp32 and rounds once, at the end. */
typedef struct skv_matmul_params {
  uint32_t struct_size;
  int32_t input_type, weight_type, output_type;
  const void *input;         /* [rows][inner], rows input_stride elements apart */
  const void *weight;        /* [columns][inner] */
  const void *bias;          /* [columns] weight_type, or null */
  void *output;              /* [rows][columns], rows output_stride elements apart */
  int64_t rows, columns, inner;
  int64_t input_stride, output_stride; /* elements; 0: dense */
  int32_t accumulate;        /* not 0: add to what output holds */
} skv_matmul_params;

/* output = input / sqrt(mean(input^2) + epsilon) * weight, row by row; first adds `residual` to input in place when given. */
typedef struct skv_rms_norm_params {
  uint32_t struct_size;
  int32_t type;              /* of input and residual */
  int32_t weight_type, output_type;
  void *input;               /* [rows][width]; written only when residual is given */
  const void *residual;      /* [rows][width] or null */
  const void *weight;        /* [width] */
  void *output;              /* [rows][width] */
  int64_t rows, width;
  float epsilon;
} skv_rms_norm_params;

/* output = silu(gate) * up. */
typedef struct skv_silu_multiply_params {
  uint32_t struct_size;
  int32_t type;
  const void *gate, *up;     /* [rows][width], rows stride elements apart */
  void *output;              /* [rows][width] */
  int64_t rows, width, stride; /* stride 0: width */
} skv_silu_multiply_params;

/* output = rows of a table. An id outside [0, vocabulary) gives a row of NaN. */
typedef struct skv_embed_params {
  uint32_t struct_size;
  int32_t table_type, output_type;
  const void *table;         /* [vocabulary][width] */
  const int32_t *ids;        /* [count] */
  void *output;              /* [count][width] */
  int64_t count, width, vocabulary;
} skv_embed_params;

/* output = a + b. output may be a or b. */
typedef struct skv_add_params {
  uint32_t struct_size;
  int32_t type;
  const void *a, *b;
  void *output;
  int64_t count;
} skv_add_params;

/* Changes the element type among F32, BF16 and F16, to nearest even. */
typedef struct skv_convert_params {
  uint32_t struct_size;
  int32_t input_type, output_type;
  const void *input;
  void *output;
  int64_t count;
} skv_convert_params;

/* Index of the largest element of each row (ties: the lower index; a row with a NaN gives -1). */
typedef struct skv_argmax_params {
  uint32_t struct_size;
  int32_t type;
  const void *input;         /* [rows][width] */
  int64_t rows, width;
  int32_t *ids;              /* [rows] */
} skv_argmax_params;

/* Normally distributed numbers from a counter-based generator: the same on both backends to rounding. */
typedef struct skv_random_fill_params {
  uint32_t struct_size;
  int32_t type;              /* F32, BF16, F16 */
  void *output;
  int64_t count;
  uint64_t seed;
  float mean, deviation;
} skv_random_fill_params;

#ifdef __cplusplus
}
#endif

#endif /* SHADOWKV_TYPES_H */
