// Contexts, memory, streams, graphs, marks, and every status that they can give.
#include <sys/mman.h>

#include <thread>

#include "gpu_test.h"

namespace {

using gpu::Array;
using gpu::throws;

std::vector<std::uint8_t> random_bytes(std::mt19937_64& generator, std::size_t count) {
  std::vector<std::uint8_t> bytes(count);
  for (std::uint8_t& byte : bytes) {
    byte = static_cast<std::uint8_t>(generator());
  }
  return bytes;
}

void copies(skv::Backend& backend, std::mt19937_64& generator) {
  const std::size_t count = 1'000'003;
  const auto source = random_bytes(generator, count);
  Array device(backend, static_cast<std::int64_t>(count)), second(backend, static_cast<std::int64_t>(count));
  auto* const pinned = static_cast<std::uint8_t*>(backend.allocate_host(count));
  bool zeroed = true;
  for (std::size_t i = 0; i < count; ++i) {
    zeroed = zeroed && pinned[i] == 0;
  }
  CHECK(zeroed);
  // pageable -> device -> device -> pinned -> device -> pageable; the pageable source is changed at once.
  auto changed = source;
  backend.copy(device, changed.data(), count);
  std::fill(changed.begin(), changed.end(), std::uint8_t{0});
  backend.copy(second, device, count);
  backend.copy(pinned, second, count);
  backend.synchronize();
  CHECK(std::memcmp(pinned, source.data(), count) == 0);
  std::vector<std::uint8_t> back(count);
  backend.copy(back.data(), device, count);
  backend.synchronize();
  CHECK(back == source);
  backend.fill(device, 0x5a, count);
  backend.copy(back.data(), device, count);
  backend.synchronize();
  CHECK(std::all_of(back.begin(), back.end(), [](std::uint8_t byte) { return byte == 0x5a; }));
  backend.fill(back.data(), 0x11, count);
  CHECK(std::all_of(back.begin(), back.end(), [](std::uint8_t byte) { return byte == 0x11; }));

  const std::size_t width = 123, rows = 45, source_pitch = 200, target_pitch = 151;
  backend.copy(device, source.data(), source_pitch * rows);
  backend.fill(second, 0xee, target_pitch * rows);
  backend.copy_2d(second, target_pitch, device, source_pitch, width, rows);
  const auto result = second.bytes();
  bool rows_match = true, gaps_kept = true;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < target_pitch; ++i) {
      const std::uint8_t byte = result[row * target_pitch + i];
      if (i < width) {
        rows_match = rows_match && byte == source[row * source_pitch + i];
      } else {
        gaps_kept = gaps_kept && byte == 0xee;
      }
    }
  }
  CHECK(rows_match);
  CHECK(gaps_kept);
  backend.free_host(pinned);
}

void host_memory(skv::Backend& backend, std::mt19937_64& generator) {
  const std::size_t bytes = 3u << 20;
  void* const raw = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto contents = random_bytes(generator, bytes);
  std::memcpy(raw, contents.data(), bytes);
  backend.register_host(raw, bytes);
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.register_host(raw, bytes); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.free_host(raw); }));
  Array device(backend, static_cast<std::int64_t>(bytes));
  backend.copy(device, raw, bytes);
  CHECK(device.bytes() == contents);
  backend.unregister_host(raw);
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.unregister_host(raw); }));
  munmap(raw, bytes);
  CHECK(throws(SKV_OUT_OF_HOST_MEMORY, [&] { backend.allocate_host(std::uint64_t{1} << 46); }));
  CHECK(throws(SKV_OUT_OF_HOST_MEMORY, [&] { backend.allocate_host(~std::uint64_t{0}); }));
  // Several threads touch it, more than one step of the touch.
  const std::uint64_t large = (std::uint64_t{1} << 30) + 12345;
  auto* const memory = static_cast<std::uint8_t*>(backend.allocate_host(large));
  bool zeroed = true;
  for (std::uint64_t i = 0; i < large; i += 4096) {
    zeroed = zeroed && memory[i] == 0;
  }
  CHECK(zeroed);
  memory[large - 1] = 7;
  Array last(backend, 1);
  backend.copy(last, memory + large - 1, 1);
  CHECK(last.bytes()[0] == 7);
  backend.free_host(memory);
}

void device_memory(skv::Backend& backend) {
  std::uint64_t free_before = 0, free_after = 0, total = 0;
  backend.memory_info(free_before, total);
  CHECK(free_before > 0 && free_before <= total);
  CHECK(throws(SKV_OUT_OF_DEVICE_MEMORY, [&] { backend.allocate_device(total * 2); }));
  // The context works on after that.
  void* const some = backend.allocate_device(std::uint64_t{512} << 20);
  backend.memory_info(free_after, total);
  // What others take of the device meanwhile counts too; beside checking tools there are some.
  const bool alone = !check::small();
  CHECK(!alone || free_after < free_before);
  backend.free_device(some);
  backend.memory_info(free_after, total);
  CHECK(!alone || free_after == free_before);
  int on_the_stack = 0;
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.free_device(&on_the_stack); }));
}

void graphs(skv::Backend& backend, std::mt19937_64& generator) {
  const std::int64_t count = 10'001;
  const auto a = gpu::rounded(gpu::normals(generator, count), SKV_F32);
  Array left(backend, a, SKV_F32), right(backend, a, SKV_F32), sum(backend, count * 4);
  skv_add_params p = {};
  p.type = SKV_F32;
  p.a = left;
  p.b = right;
  p.output = sum;
  p.count = count;
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.end_graph(); }));
  backend.begin_graph();
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.allocate_device(1); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.allocate_host(1); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.synchronize(); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.begin_graph(); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.copy(left, a.data(), 16); }));
  backend.mark(0);
  backend.add(p);
  backend.mark(1);
  // Ended by another thread than the one that began it.
  std::unique_ptr<skv::Graph> graph;
  std::thread([&] { graph = backend.end_graph(); }).join();
  const auto untouched = sum.bytes();
  CHECK(std::all_of(untouched.begin(), untouched.end(), [](std::uint8_t byte) { return byte == 0xff; }));
  for (int replay = 0; replay < 3; ++replay) {
    const auto b = gpu::normals(generator, count);
    backend.copy(right, b.data(), static_cast<std::uint64_t>(count) * 4);
    backend.launch_graph(*graph);
    const auto result = sum.values(SKV_F32);
    bool right_sums = true;
    for (std::size_t i = 0; i < result.size(); ++i) {
      right_sums = right_sums && result[i] == a[i] + b[i];
    }
    CHECK(right_sums);
  }
  const float milliseconds = backend.elapsed(0, 1);
  CHECK(milliseconds >= 0 && milliseconds < 1000);
  backend.mark(3);
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.elapsed(3, 4); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.mark(16); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.mark(-1); }));
}

// Rows go through the device and back on a lane while the context's stream changes them, two buffers in turn: what
// comes back is right only if lanes wait for each other where they meet, and nothing is ahead of its turn.
void lanes(skv::Backend& backend, std::mt19937_64& generator) {
  constexpr int kBlocks = 40;
  const std::int64_t count = check::small() ? 10'001 : 4'000'003;
  const std::uint64_t bytes = static_cast<std::uint64_t>(count) * 4;
  auto* const host = static_cast<float*>(backend.allocate_host(kBlocks * bytes));
  const auto values = gpu::rounded(gpu::normals(generator, count), SKV_F32);
  for (int block = 0; block < kBlocks; ++block) {
    for (std::int64_t i = 0; i < count; ++i) {
      host[block * count + i] = values[static_cast<std::size_t>(i)] + static_cast<float>(block);
    }
  }
  const std::vector<float> before(host, host + kBlocks * count);
  Array first(backend, count * 4), second(backend, count * 4);
  void* const buffers[] = {first, second};
  skv_add_params p = {};
  p.type = SKV_F32;
  p.count = count;
  const auto on_lane = [&](int fetch, int give) {
    backend.use_lane(1);
    if (give >= 0) {
      backend.copy(host + give * count, buffers[give % 2], bytes);
    }
    if (fetch < kBlocks) {
      backend.copy(buffers[fetch % 2], host + fetch * count, bytes);
    }
    backend.use_lane(0);
  };
  // Buffers have been filled by then.
  backend.meet_lane(1);
  on_lane(0, -1);
  for (int block = 0; block < kBlocks; ++block) {
    backend.meet_lane(1);
    p.a = p.b = p.output = buffers[block % 2];
    backend.add(p);
    on_lane(block + 1, block - 1);
  }
  backend.meet_lane(1);
  on_lane(kBlocks, kBlocks - 1);
  backend.synchronize();
  bool right = true;
  for (std::size_t i = 0; i < before.size(); ++i) {
    right = right && host[i] == 2 * before[i];
  }
  CHECK(right);
  backend.free_host(host);
  backend.begin_graph();
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.use_lane(1); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.meet_lane(2); }));
  backend.add(p);
  backend.end_graph();
}

void two_contexts(std::mt19937_64& generator) {
  std::string reason;
  auto first = gpu::open(reason), second = gpu::open(reason);
  CHECK(first->stream() != second->stream());
  const auto values = gpu::normals(generator, 1000);
  Array mine(*first, values, SKV_F32), others(*second, values, SKV_F32);
  // A context on another's stream.
  skv_context_params params = {};
  params.stream = first->stream();
  auto guest = skv::make_cuda_backend(params);
  CHECK(guest->stream() == first->stream());
  skv_add_params p = {};
  p.type = SKV_F32;
  p.a = p.b = mine;
  p.output = mine;
  p.count = 1000;
  guest->add(p);
  const auto doubled = mine.values(SKV_F32), kept = others.values(SKV_F32);
  bool right_values = true;
  for (std::size_t i = 0; i < values.size(); ++i) {
    right_values = right_values && doubled[i] == 2 * values[i] && kept[i] == values[i];
  }
  CHECK(right_values);
  params.stream = 0;
  auto plain = skv::make_cuda_backend(params);
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { plain->begin_graph(); }));
}

void refusals(skv::Backend& backend) {
  skv_context_params params = {};
  params.ordinal = 4096;
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { skv::make_cuda_backend(params); }));
  params.ordinal = -1;
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { skv::make_cuda_backend(params); }));
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.workspace_bytes(999, nullptr); }));
  skv_low_rank_factor_params factor = {};
  factor.type = factor.coefficient_type = SKV_BF16;
  factor.tokens = 5000;
  factor.key_value_heads = 8;
  factor.head_dim = 128;
  factor.rank = 160;
  const std::uint64_t needed = backend.workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &factor);
  CHECK(needed > 1024);
  CHECK(throws(SKV_INVALID_ARGUMENT, [&] { backend.low_rank_factor(factor); }));
  factor.type = factor.coefficient_type = SKV_F32;
  CHECK(throws(SKV_UNSUPPORTED, [&] { backend.low_rank_factor(factor); }));
  skv_add_params sum = {};
  sum.type = SKV_I8;
  sum.count = 1;
  CHECK(throws(SKV_UNSUPPORTED, [&] { backend.add(sum); }));
}

}  // namespace

int main() {
  std::string reason;
  auto backend = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  skv_device_info info = {};
  backend->describe(info);
  std::printf("%s, %d SMs, %s\n", info.name, info.multiprocessors, backend->describe_blas().c_str());
  CHECK(info.multiprocessors > 0 && info.compute_major >= 8);
  auto generator = check::fresh_generator();
  copies(*backend, generator);
  host_memory(*backend, generator);
  device_memory(*backend);
  graphs(*backend, generator);
  lanes(*backend, generator);
  two_contexts(generator);
  refusals(*backend);
  return check::verdict();
}
