/*
 * C ABI of the shadowkv native library: stateless kernels over pointers, sizes and a stream.
 *
 * - Every function returns a status; SKV_OK is 0. What went wrong is written, as one line, into the
 *   buffer that the function takes or into the context (skv_context_message). Nothing is kept in
 *   thread-local state, nothing throws, exits or aborts.
 * - A context may be used by one thread at a time, by any thread. Different contexts are independent.
 * - CUDA work is asynchronous on the context's stream; CPU work is done when the call returns. A fault
 *   of earlier asynchronous work is reported by a later call as SKV_DEVICE_ERROR.
 * - The operations of the decode path never allocate; they use the context's workspace, which
 *   skv_reserve_workspace makes as large as skv_workspace_bytes asks for. All of them can be captured
 *   in a graph.
 */
#ifndef SHADOWKV_H
#define SHADOWKV_H

#include <stdint.h>

#include "shadowkv_types.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(SHADOWKV_BUILD)
#define SKV_API __attribute__((visibility("default")))
#else
#define SKV_API
#endif

enum { SKV_ABI_VERSION = 7 };

typedef struct skv_context skv_context;
typedef struct skv_graph skv_graph;

/* --- Library -------------------------------------------------------------------------------- */

/* SKV_ABI_VERSION of the library. */
SKV_API uint32_t skv_abi_version(void);
/* Version and what was compiled in, for people: "0.1.0, CPU (portable, AVX2, AVX-512, AVX-512 BF16), CUDA 13.0 (sm_80, sm_90, PTX 9.0)". Static. */
SKV_API const char *skv_build_info(void);
/* Name of a status, "SKV_OK" and so on; "unknown status" for others. Static. */
SKV_API const char *skv_status_name(skv_status status);
/* sizeof of the named struct ("skv_rope_params"), 0 for an unknown name: lets bindings prove that they match. */
SKV_API uint64_t skv_struct_size(const char *name);

/* --- Devices and contexts ------------------------------------------------------------------- */

/* How many devices a backend has (CPU: 1). NOT_AVAILABLE with the reason when there is no driver. */
SKV_API skv_status skv_device_count(int32_t backend, int32_t *count, char *message, uint64_t message_size);
SKV_API skv_status skv_device_describe(int32_t backend, int32_t ordinal, skv_device_info *info, char *message, uint64_t message_size);

SKV_API skv_status skv_context_create(const skv_context_params *params, skv_context **context, char *message, uint64_t message_size);
/* Waits for the stream, frees what the context owns. null is allowed. */
SKV_API skv_status skv_context_destroy(skv_context *context);
/* Copies the message of the last failed call, zero-terminated. */
SKV_API skv_status skv_context_message(skv_context *context, char *message, uint64_t message_size);
/* Which BLAS is used and where it was found, or the places searched when there is none. */
SKV_API skv_status skv_blas_describe(skv_context *context, char *message, uint64_t message_size);
/* The context's cudaStream_t as an address; 0 for the CPU. */
SKV_API skv_status skv_context_stream(skv_context *context, uint64_t *stream);
/* Waits until all work of the context is done. */
SKV_API skv_status skv_synchronize(skv_context *context);

/* Bytes of workspace that an operation needs with these parameters; pointers in params may be null. */
SKV_API skv_status skv_workspace_bytes(skv_context *context, int32_t operation, const void *params, uint64_t *bytes);
/* Makes the workspace at least that large; waits for the stream when it has to grow. */
SKV_API skv_status skv_reserve_workspace(skv_context *context, uint64_t bytes);
/*
 * One operation `count` times, with an array of its params: the same as so many calls that neither read nor write what
 * another of them writes. CUDA: those of skv_rope_rotate, skv_low_rank_project, skv_landmark_build and
 * skv_value_store that differ in nothing but addresses share launches, 16 each; others go one by one. The workspace is
 * as large as the largest of them asks for.
 */
SKV_API skv_status skv_each(skv_context *context, int32_t operation, const void *params, int32_t count);

/* --- Memory --------------------------------------------------------------------------------- */

/* Device memory (CPU: host memory, 64-byte aligned). Not initialised. */
SKV_API skv_status skv_device_allocate(skv_context *context, uint64_t bytes, void **address);
SKV_API skv_status skv_device_free(skv_context *context, void *address);
/* Host memory on huge pages where possible, touched in parallel, then pinned and mapped for the device (CPU: not pinned). Zeroed. */
SKV_API skv_status skv_host_allocate(skv_context *context, uint64_t bytes, void **address);
SKV_API skv_status skv_host_free(skv_context *context, void *address);
/* Pins and maps the caller's own host memory. */
SKV_API skv_status skv_host_register(skv_context *context, void *address, uint64_t bytes);
SKV_API skv_status skv_host_unregister(skv_context *context, void *address);
/* Free and total bytes of the device (CPU: of the host). */
SKV_API skv_status skv_memory_info(skv_context *context, uint64_t *free_bytes, uint64_t *total_bytes);
/* Asynchronous copy between any two of device, pinned host and pageable host memory. Pageable host memory: may be reused once the call returns (source) or after skv_synchronize (target). */
SKV_API skv_status skv_copy(skv_context *context, void *target, const void *source, uint64_t bytes);
SKV_API skv_status skv_copy_2d(skv_context *context, void *target, uint64_t target_pitch, const void *source, uint64_t source_pitch, uint64_t width, uint64_t rows);
/* Sets every byte. */
SKV_API skv_status skv_fill(skv_context *context, void *target, int32_t byte, uint64_t bytes);

/* --- Graphs --------------------------------------------------------------------------------- */

/* Begins to capture what the context is asked to do. CPU: NOT_AVAILABLE. */
SKV_API skv_status skv_graph_begin(skv_context *context);
SKV_API skv_status skv_graph_end(skv_context *context, skv_graph **graph);
SKV_API skv_status skv_graph_launch(skv_context *context, skv_graph *graph);
SKV_API skv_status skv_graph_destroy(skv_context *context, skv_graph *graph);

/* --- Lanes ----------------------------------------------------------------------------------- */

/*
 * Lane 0 is the context's stream. What the other lanes are given goes on beside it, and they take copies, fills and
 * skv_value_store alone, since everything else shares the workspace. Each lane keeps its own order; between lanes
 * there is none but what skv_meet_lane states. skv_synchronize waits for all. CPU: work is done when a call returns.
 */

/* Work from now on is given to that lane, 0 to SKV_LANES - 1. */
SKV_API skv_status skv_use_lane(skv_context *context, int32_t lane);
/* What lane 0 and that lane are given from now on begins when both have done what they were given before. */
SKV_API skv_status skv_meet_lane(skv_context *context, int32_t lane);

/* --- Timing --------------------------------------------------------------------------------- */

/* Records the stream's time under one of 16 marks (CPU: the clock). */
SKV_API skv_status skv_mark(skv_context *context, int32_t mark);
/* Milliseconds between two marks; waits for the later one. */
SKV_API skv_status skv_elapsed(skv_context *context, int32_t from, int32_t to, float *milliseconds);

/* --- Building the cache --------------------------------------------------------------------- */

SKV_API skv_status skv_rope_rotate(skv_context *context, const skv_rope_params *params);
SKV_API skv_status skv_store_tokens(skv_context *context, const skv_store_tokens_params *params);
SKV_API skv_status skv_low_rank_factor(skv_context *context, const skv_low_rank_factor_params *params);
SKV_API skv_status skv_low_rank_project(skv_context *context, const skv_low_rank_project_params *params);
SKV_API skv_status skv_rebuild_keys(skv_context *context, const skv_rebuild_keys_params *params);
SKV_API skv_status skv_landmark_build(skv_context *context, const skv_landmark_build_params *params);
SKV_API skv_status skv_outlier_select(skv_context *context, const skv_outlier_select_params *params);
SKV_API skv_status skv_chunk_gather(skv_context *context, const skv_chunk_gather_params *params);
SKV_API skv_status skv_value_store(skv_context *context, const skv_value_store_params *params);
SKV_API skv_status skv_moment_update(skv_context *context, const skv_moment_update_params *params);
SKV_API skv_status skv_value_fit(skv_context *context, const skv_value_fit_params *params);

/* --- Decoding ------------------------------------------------------------------------------- */

SKV_API skv_status skv_landmark_topk(skv_context *context, const skv_landmark_topk_params *params);
SKV_API skv_status skv_rerank(skv_context *context, const skv_rerank_params *params);
SKV_API skv_status skv_cache_plan(skv_context *context, const skv_cache_plan_params *params);
SKV_API skv_status skv_value_gather(skv_context *context, const skv_value_gather_params *params);
SKV_API skv_status skv_sparse_attention(skv_context *context, const skv_sparse_attention_params *params);
SKV_API skv_status skv_dense_attention(skv_context *context, const skv_dense_attention_params *params);
SKV_API skv_status skv_prefill_attention(skv_context *context, const skv_prefill_attention_params *params);
SKV_API skv_status skv_decode_layer(skv_context *context, const skv_decode_layer_params *params);
SKV_API skv_status skv_dense_decode_layer(skv_context *context, const skv_dense_decode_layer_params *params);

/* --- The rest of a transformer layer -------------------------------------------------------- */

SKV_API skv_status skv_matmul(skv_context *context, const skv_matmul_params *params);
SKV_API skv_status skv_rms_norm(skv_context *context, const skv_rms_norm_params *params);
SKV_API skv_status skv_silu_multiply(skv_context *context, const skv_silu_multiply_params *params);
SKV_API skv_status skv_embed(skv_context *context, const skv_embed_params *params);
SKV_API skv_status skv_add(skv_context *context, const skv_add_params *params);
SKV_API skv_status skv_convert(skv_context *context, const skv_convert_params *params);
SKV_API skv_status skv_argmax(skv_context *context, const skv_argmax_params *params);
SKV_API skv_status skv_random_fill(skv_context *context, const skv_random_fill_params *params);

#ifdef __cplusplus
}
#endif

#endif /* SHADOWKV_H */
