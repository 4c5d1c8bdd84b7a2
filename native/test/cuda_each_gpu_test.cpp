// Operations that are given together (skv_each), against the same ones given one by one.
#include "build_fixture.h"

namespace {

using gpu::Array;
using gpu::at;

// Calls made together, more than one launch takes and of two shapes in turn, write what they write one by one.
class Together {
 public:
  static constexpr int kCalls = 37;
  static constexpr std::int64_t kHeads = 3, kDim = 96, kChunk = 8, kCapacity = 200, kChunkCapacity = 90, kRank = 40;
  static constexpr std::int64_t kRing = kHeads * kCapacity * kDim, kChunks = kHeads * kChunkCapacity;

  Together(skv::Backend& backend, std::mt19937_64& generator)
      : backend_(backend),
        ring_(backend, gpu::normals(generator, kCalls * kRing), SKV_BF16),
        basis_(backend, gpu::normals(generator, kCalls * kHeads * kRank * kDim, 0.1F), SKV_BF16),
        steps_(backend, steps_of(generator), SKV_F32),
        results_(backend, kCalls * kBytes),
        host_(static_cast<std::uint8_t*>(backend.allocate_host(kCalls * kBytes))) {}
  ~Together() { backend_.free_host(host_); }

  void rope() {
    const gpu::Rotation rotation(kDim, SKV_HALF_SPLIT, 10000, 1.2, 4096);
    Array coarse = Array::of(backend_, rotation.coarse), fine = Array::of(backend_, rotation.fine);
    compare<skv_rope_params>("rope", SKV_OP_ROPE, &skv::Backend::rope, [&](skv_rope_params& p, int call) {
      p.type = SKV_BF16;
      p.input = ring_.as<std::uint16_t>() + call * kRing + (call % 2 ? 5 * kDim : 0);
      p.input_head_stride = kCapacity * kDim;
      p.input_stride = kDim;
      p.output = result(call);
      p.count = call % 2 ? 17 : 47;
      p.heads = static_cast<std::int32_t>(kHeads);
      p.head_dim = static_cast<std::int32_t>(kDim);
      p.first_position = 1000 + call % 2;
      p.inverse = 1;
      p.rope = rotation.on(coarse, fine);
    });
  }

  void project(std::int32_t coefficient_type) {
    compare<skv_low_rank_project_params>("low_rank_project", SKV_OP_LOW_RANK_PROJECT, &skv::Backend::low_rank_project,
                                         [&](skv_low_rank_project_params& p, int call) {
                                           p.type = SKV_BF16;
                                           p.coefficient_type = coefficient_type;
                                           p.coefficient_scales = steps_.as<float>() + call * kRank;
                                           p.keys = ring_.as<std::uint16_t>() + call * kRing;
                                           p.count = call % 2 ? 64 : 33;
                                           p.key_value_heads = static_cast<std::int32_t>(kHeads);
                                           p.head_dim = static_cast<std::int32_t>(kDim);
                                           p.rank = static_cast<std::int32_t>(kRank);
                                           p.basis = basis_.as<std::uint16_t>() + call * kHeads * kRank * kDim;
                                           p.coefficients = result(call);
                                           p.residual =
                                               call % 3 ? reinterpret_cast<float*>(result(call) + kBytes / 2) : nullptr;
                                         });
  }

  void landmarks() {
    for (const std::int32_t type : {SKV_BF16, SKV_I8}) {
      compare<skv_landmark_build_params>("landmark_build", SKV_OP_LANDMARK_BUILD, &skv::Backend::landmark_build,
                                         [&](skv_landmark_build_params& p, int call) {
                                           p.storage_type = SKV_BF16;
                                           p.landmark_type = type;
                                           shape(p, call);
                                           p.rotated_keys = ring_.as<std::uint16_t>() + call * kRing;
                                           p.landmarks = result(call);
                                           float* const floats = reinterpret_cast<float*>(result(call) + kBytes / 2);
                                           p.landmark_scales = floats;
                                           p.radius = floats + kChunks;
                                           p.cosine = floats + 2 * kChunks;
                                         });
    }
  }

  void values() {
    for (const std::int32_t type : {SKV_BF16, SKV_F8_E4M3, SKV_F12_E4M7, SKV_F6_E2M3}) {
      compare<skv_value_store_params>("value_store", SKV_OP_VALUE_STORE, &skv::Backend::value_store,
                                      [&](skv_value_store_params& p, int call) {
                                        p.storage_type = SKV_BF16;
                                        p.value_type = type;
                                        shape(p, call);
                                        p.source = ring_.as<std::uint16_t>() + call * kRing;
                                        p.values = host_ + call * kBytes;
                                        p.value_scales = reinterpret_cast<float*>(result(call));
                                      });
    }
  }

 private:
  static constexpr std::int64_t kBytes = 2 * (kChunks * kChunk * kDim * 2);  // of the results of a call

  std::uint8_t* result(int call) const { return results_.as<std::uint8_t>() + call * kBytes; }

  // Of products of a deviation of two: from coefficients that mostly fit to ones that mostly do not, and some that are
  // not there.
  static std::vector<float> steps_of(std::mt19937_64& generator) {
    std::uniform_real_distribution<float> uniform(0.05F, 0.2F);
    std::vector<float> steps(at(kCalls * kRank));
    for (float& step : steps) {
      step = generator() % 16 ? uniform(generator) : 0.0F;
    }
    return steps;
  }

  // Chunks that lie around the end of the ring, for every other call.
  template <class P>
  static void shape(P& p, int call) {
    p.key_value_heads = static_cast<std::int32_t>(kHeads);
    p.head_dim = static_cast<std::int32_t>(kDim);
    p.chunk = static_cast<std::int32_t>(kChunk);
    p.capacity = kCapacity;
    p.first_chunk = call % 2 ? 21 : 60;
    p.chunks = call % 2 ? 9 : 8;
    p.chunk_capacity = kChunkCapacity;
  }

  std::vector<std::uint8_t> all_results() {
    std::vector<std::uint8_t> all = results_.bytes();
    all.insert(all.end(), host_, host_ + kCalls * kBytes);
    return all;
  }

  void clear() {
    backend_.fill(results_, 0xff, kCalls * kBytes);
    backend_.synchronize();
    std::memset(host_, 0xff, kCalls * kBytes);
  }

  template <class P, class Fill>
  void compare(const char* name, std::int32_t operation, void (skv::Backend::*run)(const P&), const Fill& fill) {
    std::vector<P> calls(kCalls);
    for (int call = 0; call < kCalls; ++call) {
      calls[at(call)].struct_size = sizeof(P);
      fill(calls[at(call)], call);
      backend_.reserve_workspace(backend_.workspace_bytes(operation, &calls[at(call)]));
    }
    clear();
    const std::vector<std::uint8_t> untouched = all_results();
    for (const P& p : calls) {
      (backend_.*run)(p);
    }
    const std::vector<std::uint8_t> one_by_one = all_results();
    clear();
    backend_.each(operation, calls.data(), kCalls);
    const bool same = all_results() == one_by_one;
    std::printf("%s: %s, %d calls together\n", same ? "ok" : "FAILED", name, kCalls);
    CHECK(same);
    CHECK(one_by_one != untouched);
  }

  skv::Backend& backend_;
  Array ring_, basis_, steps_, results_;
  std::uint8_t* host_;
};

}  // namespace

int main() {
  std::string reason;
  auto backend = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  auto generator = check::fresh_generator();
  Together together(*backend, generator);
  together.rope();
  together.project(SKV_BF16);
  together.project(SKV_I8);
  together.landmarks();
  together.values();
  return check::verdict();
}
