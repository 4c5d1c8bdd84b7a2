// The C ABI on a CPU context: contexts, memory, workspace, marks, and every status that the CPU can produce.
#include "abi_fixture.h"

namespace {

using namespace abi;

void test_workspace() {
  auto p = sized<skv_matmul_params>();
  p.input_type = SKV_BF16;
  p.rows = 3;
  p.columns = 8;
  p.inner = 512;
  std::uint64_t bytes = 0;
  CHECK_EQUAL(skv_workspace_bytes(context, SKV_OP_MATMUL, &p, &bytes), SKV_OK);  // with null pointers
  CHECK(bytes > 0);
  p.input = memory;
  p.weight = memory + 65536;
  p.output = memory + 131072;
  expect_failure(skv_matmul(context, &p), kInvalid, "skv_matmul", "bytes of workspace, 0 are reserved");
  CHECK_EQUAL(skv_reserve_workspace(context, bytes), SKV_OK);
  CHECK_EQUAL(skv_matmul(context, &p), SKV_OK);
  CHECK_EQUAL(skv_reserve_workspace(context, 1), SKV_OK);  // never smaller
  CHECK_EQUAL(skv_matmul(context, &p), SKV_OK);
  expect_failure(skv_reserve_workspace(context, UINT64_MAX), kInvalid, "skv_reserve_workspace", "bytes");
}

void test_memory() {
  void* device = nullptr;
  void* host = nullptr;
  constexpr std::uint64_t kBytes = (10U << 20) + 12345;
  CHECK_EQUAL(skv_device_allocate(context, kBytes, &device), SKV_OK);
  CHECK_EQUAL(skv_host_allocate(context, kBytes, &host), SKV_OK);
  CHECK_EQUAL(reinterpret_cast<std::uintptr_t>(device) % 64, 0U);
  const auto* const bytes = static_cast<const unsigned char*>(host);
  bool zeroed = true;
  for (std::uint64_t i = 0; i < kBytes; ++i) {
    zeroed &= bytes[i] == 0;
  }
  CHECK(zeroed);
  CHECK_EQUAL(skv_fill(context, device, 0x5a, kBytes), SKV_OK);
  CHECK_EQUAL(skv_copy(context, host, device, kBytes - 1), SKV_OK);
  CHECK(bytes[0] == 0x5a && bytes[kBytes - 2] == 0x5a && bytes[kBytes - 1] == 0);
  // 3 rows of 5 bytes, 7 and 11 apart.
  unsigned char rows[21] = {}, target[33] = {};
  for (int i = 0; i < 21; ++i) {
    rows[i] = static_cast<unsigned char>(i + 1);
  }
  CHECK_EQUAL(skv_copy_2d(context, target, 11, rows, 7, 5, 3), SKV_OK);
  bool right = true;
  for (int i = 0; i < 33; ++i) {
    right &= target[i] == (i % 11 < 5 ? i / 11 * 7 + i % 11 + 1 : 0);
  }
  CHECK(right);
  expect_failure(skv_copy_2d(context, target, 4, rows, 7, 5, 3), kInvalid, "skv_copy_2d", "a pitch is 4");
  expect_failure(skv_copy(context, nullptr, rows, 5), kInvalid, "skv_copy", "target is null");
  CHECK_EQUAL(skv_copy(context, nullptr, nullptr, 0), SKV_OK);
  expect_failure(skv_fill(context, target, 256, 5), kInvalid, "skv_fill", "byte is 256");

  expect_failure(skv_device_free(context, static_cast<char*>(device) + 64), kInvalid, "skv_device_free",
                 "not one of device memory");
  expect_failure(skv_device_free(context, host), kInvalid, "skv_device_free", "not one of device memory");
  expect_failure(skv_host_free(context, device), kInvalid, "skv_host_free", "not one of host memory");
  CHECK_EQUAL(skv_device_free(context, device), SKV_OK);
  expect_failure(skv_device_free(context, device), kInvalid, "skv_device_free", "not one of");
  CHECK_EQUAL(skv_device_free(context, nullptr), SKV_OK);
  CHECK_EQUAL(skv_host_free(context, host), SKV_OK);

  void* none = &none;
  expect_failure(skv_device_allocate(context, std::uint64_t{1} << 60, &none), SKV_OUT_OF_HOST_MEMORY,
                 "skv_device_allocate", "1152921504606846976 bytes");
  CHECK(none == nullptr);
  expect_failure(skv_host_allocate(context, std::uint64_t{1} << 60, &none), SKV_OUT_OF_HOST_MEMORY, "skv_host_allocate",
                 "are available");
  expect_failure(skv_reserve_workspace(context, std::uint64_t{1} << 60), SKV_OUT_OF_HOST_MEMORY,
                 "skv_reserve_workspace", "out of host memory");
  expect_failure(skv_device_allocate(context, 0, &none), kInvalid, "skv_device_allocate", "bytes is 0");
  expect_failure(skv_device_allocate(context, UINT64_MAX, &none), kInvalid, "skv_device_allocate", "63 bits");

  CHECK_EQUAL(skv_host_register(context, rows, sizeof(rows)), SKV_OK);
  expect_failure(skv_host_register(context, rows, sizeof(rows)), kInvalid, "skv_host_register", "already");
  CHECK_EQUAL(skv_host_unregister(context, rows), SKV_OK);
  expect_failure(skv_host_unregister(context, rows), kInvalid, "skv_host_unregister", "not one of");
  std::uint64_t available = 0, total = 0;
  CHECK_EQUAL(skv_memory_info(context, &available, &total), SKV_OK);
  CHECK(available > 0 && available <= total);
}

void test_contexts() {
  char text[512] = {};
  std::int32_t count = -1;
  CHECK_EQUAL(skv_device_count(SKV_BACKEND_CPU, &count, text, sizeof(text)), SKV_OK);
  CHECK_EQUAL(count, 1);
  expect_failure(skv_device_count(7, &count, text, sizeof(text)), kInvalid, text, "skv_device_count", "backend is 7");
  const skv_status cuda = skv_device_count(SKV_BACKEND_CUDA, &count, text, sizeof(text));
  CHECK(cuda == SKV_OK || (cuda == SKV_NOT_AVAILABLE && std::strlen(text) > 20));
  std::printf("CUDA: %s %s\n", skv_status_name(cuda), cuda == SKV_OK ? "" : text);
  // A message that does not fit is cut, and ends.
  char small[10];
  std::memset(small, 'x', sizeof(small));
  CHECK_EQUAL(skv_device_count(7, &count, small, sizeof(small)), kInvalid);
  CHECK_EQUAL(std::string(small), "skv_devic");
  CHECK_EQUAL(skv_device_count(7, &count, nullptr, 0), kInvalid);

  auto info = sized<skv_device_info>();
  CHECK_EQUAL(skv_device_describe(SKV_BACKEND_CPU, 0, &info, text, sizeof(text)), SKV_OK);
  CHECK(info.multiprocessors >= 1 && info.total_memory > 0 && std::strlen(info.name) > 0);
  std::printf("%s, %d processors, instruction set %d\n", info.name, info.multiprocessors, info.instruction_set);
  expect_failure(skv_device_describe(SKV_BACKEND_CPU, 1, &info, text, sizeof(text)), kInvalid, text,
                 "skv_device_describe", "ordinal is 1, must be 0");

  auto p = sized<skv_context_params>();
  skv_context* other = nullptr;
  const auto refused = [&](skv_status status, const char* part) {
    other = context;
    expect_failure(skv_context_create(&p, &other, text, sizeof(text)), status, text, "skv_context_create", part);
    CHECK(other == nullptr);
  };
  p.threads = -1;
  refused(kInvalid, "threads is -1, must be 0..1024");
  p.threads = 1;
  p.instruction_set = 5;
  refused(kInvalid, "instruction_set is 5");
  if (info.instruction_set < 4) {
    p.instruction_set = 4;
    refused(SKV_NOT_AVAILABLE, "lacks instruction set 4");
  }
  p.instruction_set = 0;
  p.backend = -1;
  refused(kInvalid, "backend is -1");
  if (cuda != SKV_OK) {
    p.backend = SKV_BACKEND_CUDA;
    refused(SKV_NOT_AVAILABLE, "");
  }
  p.backend = SKV_BACKEND_CPU;
  p.struct_size = 4;
  refused(kInvalid, "struct_size is 4");
  p.struct_size = sizeof(p);
  // A path where there is nothing is named among the places searched; or something else was found.
  p.blas_path = "/nowhere/libopenblas.so.0";
  CHECK_EQUAL(skv_context_create(&p, &other, text, sizeof(text)), SKV_OK);
  CHECK_EQUAL(skv_blas_describe(other, text, sizeof(text)), SKV_OK);
  std::printf("BLAS: %s\n", text);
  CHECK(!contains(text, "no CPU BLAS") || contains(text, "/nowhere/libopenblas.so.0"));
  std::uint64_t stream = 1;
  CHECK_EQUAL(skv_context_stream(other, &stream), SKV_OK);
  CHECK_EQUAL(stream, 0U);
  CHECK_EQUAL(skv_synchronize(other), SKV_OK);
  CHECK_EQUAL(skv_context_destroy(other), SKV_OK);
  CHECK_EQUAL(skv_context_destroy(nullptr), SKV_OK);
  CHECK_EQUAL(skv_synchronize(nullptr), kInvalid);

  CHECK_EQUAL(std::string(skv_status_name(SKV_UNSUPPORTED)), "SKV_UNSUPPORTED");
  CHECK_EQUAL(std::string(skv_status_name(99)), "unknown status");
  CHECK(contains(skv_build_info(), "CPU (portable, AVX2, AVX-512, AVX-512 BF16), "));
  std::printf("%s\n", skv_build_info());
}

void test_graphs_and_marks() {
  skv_graph* graph = nullptr;
  expect_failure(skv_graph_begin(context), SKV_NOT_AVAILABLE, "skv_graph_begin", "no graphs");
  expect_failure(skv_graph_end(context, &graph), SKV_NOT_AVAILABLE, "skv_graph_end", "no graphs");
  expect_failure(skv_graph_launch(context, nullptr), kInvalid, "skv_graph_launch", "graph is null");
  CHECK_EQUAL(skv_graph_destroy(context, nullptr), SKV_OK);
  float milliseconds = -1;
  expect_failure(skv_elapsed(context, 3, 4, &milliseconds), kInvalid, "skv_elapsed", "mark 3 was never");
  CHECK_EQUAL(skv_mark(context, 3), SKV_OK);
  CHECK_EQUAL(skv_mark(context, 4), SKV_OK);
  CHECK_EQUAL(skv_elapsed(context, 3, 4, &milliseconds), SKV_OK);
  CHECK(milliseconds >= 0 && milliseconds < 10000);
  expect_failure(skv_mark(context, 16), kInvalid, "skv_mark", "mark is 16, must be 0..15");
}

// On a CPU the order of the calls is the order of the work; what a lane takes is the same as on a GPU.
void test_lanes() {
  float numbers[4] = {1, 2, 3, 4}, copied[4] = {};
  auto add = sized<skv_add_params>();
  add.a = add.b = numbers;
  add.output = copied;
  add.count = 4;
  for (std::int32_t lane = 1; lane < SKV_LANES; ++lane) {
    CHECK_EQUAL(skv_meet_lane(context, lane), SKV_OK);
    CHECK_EQUAL(skv_use_lane(context, lane), SKV_OK);
    CHECK_EQUAL(skv_copy(context, copied, numbers, sizeof(numbers)), SKV_OK);
    expect_failure(skv_add(context, &add), kInvalid, "skv_add", "takes copies, fills and skv_value_store alone");
    CHECK_EQUAL(skv_use_lane(context, 0), SKV_OK);
    CHECK_EQUAL(skv_meet_lane(context, lane), SKV_OK);
    CHECK(copied[0] == 1 && copied[3] == 4);
  }
  CHECK_EQUAL(skv_add(context, &add), SKV_OK);
  CHECK_EQUAL(copied[3], 8.0F);
  expect_failure(skv_use_lane(context, -1), kInvalid, "skv_use_lane", "lane is -1");
  expect_failure(skv_use_lane(context, SKV_LANES), kInvalid, "skv_use_lane", "lane is 3");
  expect_failure(skv_meet_lane(context, 0), kInvalid, "skv_meet_lane", "lane is 0");
}

void test_each() {
  float a[3][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}}, sums[3][4] = {};
  skv_add_params calls[3];
  for (int i = 0; i < 3; ++i) {
    calls[i] = sized<skv_add_params>();
    calls[i].a = calls[i].b = a[i];
    calls[i].output = sums[i];
    calls[i].count = i + 2;
  }
  CHECK_EQUAL(skv_each(context, SKV_OP_ADD, calls, 3), SKV_OK);
  CHECK(sums[0][0] == 2 && sums[0][1] == 4 && sums[0][2] == 0 && sums[1][2] == 14 && sums[2][3] == 24);
  CHECK_EQUAL(skv_each(context, SKV_OP_ADD, nullptr, 0), SKV_OK);
  expect_failure(skv_each(context, SKV_OP_ADD, nullptr, 1), kInvalid, "skv_each", "params is null");
  expect_failure(skv_each(context, SKV_OP_ADD, calls, -1), kInvalid, "skv_each", "count is -1");
  expect_failure(skv_each(context, 999, calls, 1), kInvalid, "skv_each", "there is no operation number 999");
  // Nothing is done when one of them is refused.
  calls[2].count = -1;
  sums[0][0] = 0;
  expect_failure(skv_each(context, SKV_OP_ADD, calls, 3), kInvalid, "skv_add", "count is -1");
  CHECK_EQUAL(sums[0][0], 0.0F);
}

}  // namespace

int main() {
  char text[512] = {};
  auto p = sized<skv_context_params>();
  p.threads = 2;
  if (skv_context_create(&p, &context, text, sizeof(text)) != SKV_OK) {
    std::fprintf(stderr, "%s\n", text);
    return 1;
  }
  test_contexts();
  test_workspace();
  test_memory();
  test_graphs_and_marks();
  test_lanes();
  test_each();
  CHECK_EQUAL(skv_context_destroy(context), SKV_OK);
  return check::verdict();
}
