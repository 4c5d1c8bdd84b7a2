// The list of operations, for the places that must name every one of them: the ABI's entry points, the
// backends' dispatch and the size table of the parameter structs.
//
// X(method, parameter struct, ABI function, operation number)
#pragma once

#define SKV_OPERATIONS(X)                                                                          \
  X(rope, skv_rope_params, skv_rope_rotate, SKV_OP_ROPE)                                           \
  X(store_tokens, skv_store_tokens_params, skv_store_tokens, SKV_OP_STORE_TOKENS)                  \
  X(low_rank_factor, skv_low_rank_factor_params, skv_low_rank_factor, SKV_OP_LOW_RANK_FACTOR)      \
  X(low_rank_project, skv_low_rank_project_params, skv_low_rank_project, SKV_OP_LOW_RANK_PROJECT)  \
  X(rebuild_keys, skv_rebuild_keys_params, skv_rebuild_keys, SKV_OP_REBUILD_KEYS)                  \
  X(landmark_build, skv_landmark_build_params, skv_landmark_build, SKV_OP_LANDMARK_BUILD)          \
  X(outlier_select, skv_outlier_select_params, skv_outlier_select, SKV_OP_OUTLIER_SELECT)          \
  X(chunk_gather, skv_chunk_gather_params, skv_chunk_gather, SKV_OP_CHUNK_GATHER)                  \
  X(value_store, skv_value_store_params, skv_value_store, SKV_OP_VALUE_STORE)                      \
  X(moment_update, skv_moment_update_params, skv_moment_update, SKV_OP_MOMENT_UPDATE)              \
  X(value_fit, skv_value_fit_params, skv_value_fit, SKV_OP_VALUE_FIT)                              \
  X(landmark_topk, skv_landmark_topk_params, skv_landmark_topk, SKV_OP_LANDMARK_TOPK)              \
  X(rerank, skv_rerank_params, skv_rerank, SKV_OP_RERANK)                                          \
  X(cache_plan, skv_cache_plan_params, skv_cache_plan, SKV_OP_CACHE_PLAN)                          \
  X(value_gather, skv_value_gather_params, skv_value_gather, SKV_OP_VALUE_GATHER)                  \
  X(sparse_attention, skv_sparse_attention_params, skv_sparse_attention, SKV_OP_SPARSE_ATTENTION)  \
  X(dense_attention, skv_dense_attention_params, skv_dense_attention, SKV_OP_DENSE_ATTENTION)      \
  X(prefill_attention, skv_prefill_attention_params, skv_prefill_attention,                        \
    SKV_OP_PREFILL_ATTENTION)                                                                      \
  X(decode_layer, skv_decode_layer_params, skv_decode_layer, SKV_OP_DECODE_LAYER)                  \
  X(dense_decode_layer, skv_dense_decode_layer_params, skv_dense_decode_layer,                     \
    SKV_OP_DENSE_DECODE_LAYER)                                                                     \
  X(matmul, skv_matmul_params, skv_matmul, SKV_OP_MATMUL)                                          \
  X(rms_norm, skv_rms_norm_params, skv_rms_norm, SKV_OP_RMS_NORM)                                  \
  X(silu_multiply, skv_silu_multiply_params, skv_silu_multiply, SKV_OP_SILU_MULTIPLY)              \
  X(embed, skv_embed_params, skv_embed, SKV_OP_EMBED)                                              \
  X(add, skv_add_params, skv_add, SKV_OP_ADD)                                                      \
  X(convert, skv_convert_params, skv_convert, SKV_OP_CONVERT)                                      \
  X(argmax, skv_argmax_params, skv_argmax, SKV_OP_ARGMAX)                                          \
  X(random_fill, skv_random_fill_params, skv_random_fill, SKV_OP_RANDOM_FILL)
