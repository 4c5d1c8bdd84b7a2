// Checks of the operations around attention.
#include "abi/check.h"
#include "abi/context.h"

namespace skv::abi {

void check_matmul(const skv_matmul_params* p, bool pointers) {
  const Check check = begin("skv_matmul", p, pointers);
  check.type("input_type", p->input_type);
  check.type("weight_type", p->weight_type);
  check.type("output_type", p->output_type);
  check.at_least("rows", p->rows, 0);
  check.at_least("columns", p->columns, 1);
  check.at_least("inner", p->inner, 1);
  check.stride("input_stride", p->input_stride, p->inner);
  check.stride("output_stride", p->output_stride, p->columns);
  check.elements("input", {p->rows, p->input_stride ? p->input_stride : p->inner});
  check.elements("output", {p->rows, p->output_stride ? p->output_stride : p->columns});
  check.elements("weight", {p->columns, p->inner});
  if (p->rows > 0) {
    check.pointer("input", p->input);
    check.pointer("weight", p->weight);
    check.pointer("output", p->output);
  }
}

void check_rms_norm(const skv_rms_norm_params* p, bool pointers) {
  const Check check = begin("skv_rms_norm", p, pointers);
  check.type("type", p->type);
  check.type("weight_type", p->weight_type);
  check.type("output_type", p->output_type);
  check.at_least("rows", p->rows, 0);
  check.at_least("width", p->width, 1);
  check.elements("input", {p->rows, p->width});
  check.finite("epsilon", p->epsilon);
  if (p->epsilon < 0) {
    check.fail(SKV_INVALID_ARGUMENT, "epsilon is " + std::to_string(p->epsilon) + ", must not be negative");
  }
  if (p->rows > 0) {
    check.pointer("input", p->input);
    check.pointer("weight", p->weight);
    check.pointer("output", p->output);
  }
}

void check_silu_multiply(const skv_silu_multiply_params* p, bool pointers) {
  const Check check = begin("skv_silu_multiply", p, pointers);
  check.type("type", p->type);
  check.at_least("rows", p->rows, 0);
  check.at_least("width", p->width, 1);
  check.stride("stride", p->stride, p->width);
  check.elements("gate", {p->rows, p->stride ? p->stride : p->width});
  if (p->rows > 0) {
    check.pointer("gate", p->gate);
    check.pointer("up", p->up);
    check.pointer("output", p->output);
  }
}

void check_embed(const skv_embed_params* p, bool pointers) {
  const Check check = begin("skv_embed", p, pointers);
  check.type("table_type", p->table_type);
  check.type("output_type", p->output_type);
  check.at_least("count", p->count, 0);
  check.at_least("width", p->width, 1);
  check.range("vocabulary", p->vocabulary, 1, INT32_MAX);
  check.elements("table", {p->vocabulary, p->width});
  check.elements("output", {p->count, p->width});
  if (p->count > 0) {
    check.pointer("table", p->table);
    check.pointer("ids", p->ids);
    check.pointer("output", p->output);
  }
}

void check_add(const skv_add_params* p, bool pointers) {
  const Check check = begin("skv_add", p, pointers);
  check.type("type", p->type);
  check.at_least("count", p->count, 0);
  check.elements("output", {p->count});
  if (p->count > 0) {
    check.pointer("a", p->a);
    check.pointer("b", p->b);
    check.pointer("output", p->output);
  }
}

void check_convert(const skv_convert_params* p, bool pointers) {
  const Check check = begin("skv_convert", p, pointers);
  check.type("input_type", p->input_type);
  check.type("output_type", p->output_type);
  check.at_least("count", p->count, 0);
  check.elements("output", {p->count});
  if (p->count > 0) {
    check.pointer("input", p->input);
    check.pointer("output", p->output);
  }
}

void check_argmax(const skv_argmax_params* p, bool pointers) {
  const Check check = begin("skv_argmax", p, pointers);
  check.type("type", p->type);
  check.at_least("rows", p->rows, 0);
  check.range("width", p->width, 1, INT32_MAX);
  check.elements("input", {p->rows, p->width});
  if (p->rows > 0) {
    check.pointer("input", p->input);
    check.pointer("ids", p->ids);
  }
}

void check_random_fill(const skv_random_fill_params* p, bool pointers) {
  const Check check = begin("skv_random_fill", p, pointers);
  check.type("type", p->type);
  check.at_least("count", p->count, 0);
  check.elements("output", {p->count});
  check.finite("mean", p->mean);
  check.finite("deviation", p->deviation);
  if (p->count > 0) {
    check.pointer("output", p->output);
  }
}

}  // namespace skv::abi
