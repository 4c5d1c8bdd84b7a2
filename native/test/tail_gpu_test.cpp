// Tokens that a selection leaves out, on CUDA: their weight by landmarks and by rebuilt keys, and their part in
// attention and in whole layers, against definitions in double precision.
#include "tail_fixture.h"

namespace {

using namespace decode_gpu;

void check_landmark_weight(float actual, const LandmarkWeight& expected) {
  if (expected.left == kNothing) {
    CHECK(actual == -INFINITY);
  } else {
    CHECK_NEAR(std::exp(actual - expected.all), std::exp(expected.left - expected.all), expected.tolerance);
  }
}

// --- Weights ------------------------------------------------------------------------------------

void check_topk(Batch& b, Memory& tail, float radius_weight) {
  auto p = topk_params(b, radius_weight);
  // The tail changes nothing else.
  reserve(SKV_OP_LANDMARK_TOPK, &p);
  backend->landmark_topk(p);
  const auto selections = read_selections(b);
  const auto masses = b.mass->read<std::uint32_t>();
  tail.poison();
  b.selected->poison();
  b.selected_count->poison();
  b.mass->poison();
  p.tail = tail.as<float>();
  reserve(SKV_OP_LANDMARK_TOPK, &p);
  backend->landmark_topk(p);
  CHECK(read_selections(b) == selections);
  CHECK(b.mass->read<std::uint32_t>() == masses);
  const auto actual = tail.read<float>();
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    const auto query = b.query(session, static_cast<int>(at) % b.shape.query_heads);
    check_landmark_weight(actual[at], landmark_weight(b, session, head, query, selections[pair], radius_weight));
  });
}

// tail: what check_topk left.
void check_rerank(Batch& b, Memory& tail) {
  const Shape& s = b.shape;
  const Lists shortlist = read_selections(b);
  const auto before = tail.read<float>();
  const int keep = std::max(1, s.select / 3);
  const auto pairs = shortlist.size();
  Memory selected(*backend, pairs * static_cast<std::uint64_t>(keep) * 4), counts(*backend, pairs * 4);
  selected.poison();
  counts.poison();
  auto p = rerank_params(b, keep, selected, counts);
  reserve(SKV_OP_RERANK, &p);
  backend->rerank(p);
  const Lists chosen = read_lists(selected, counts, keep);
  p.tail = tail.as<float>();
  backend->rerank(p);
  CHECK(read_lists(selected, counts, keep) == chosen);
  const auto actual = tail.read<float>();
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    const auto query = b.query(session, static_cast<int>(at) % s.query_heads);
    const Weight dropped = exact_weight(b, session, head, query, without(shortlist[pair], chosen[pair]));
    check_weight(actual[at], {log_add(before[at], dropped.log), dropped.tolerance});
  });
}

// --- Attention ----------------------------------------------------------------------------------

void check_sparse(Batch& b) {
  const Shape& s = b.shape;
  const auto queries = queries_of(b);
  // Weights far below, near and far above that of what is attended.
  std::vector<float> weights;
  std::normal_distribution<float> normal(7.0F, 3.0F);
  for (std::size_t i = 0; i < queries.size(); ++i) {
    weights.push_back(generator() % 6 == 0 ? -INFINITY : normal(generator));
  }
  const auto tail = fixture::upload(*backend, weights);
  Memory output(*backend, b.queries.size() * 4), log_sums(*backend, queries.size() * 4);
  output.poison();
  log_sums.poison();
  // Without slots, values are read in place.
  auto p = sparse_params(b, *b.selected, output, log_sums);
  // The workspace is asked for before the tail has an address.
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  p.tail = tail->as<float>();
  backend->sparse_attention(p);
  Rests rests;
  each_head(b, [&](std::size_t at, int session, int head, std::size_t) {
    rests.push_back(rest_of(b, session, head, queries[at], {weights[at], 0}));
  });
  check_attention(b, read_selections(b), queries, output.read<float>(), log_sums.read<float>(),
                  s.group() > 8 ? kBf16Unit : kSplitUnit, kF32Unit, rests);
  CHECK(tail->read<float>() == weights);  // read alone
}

void check_shape(const char* name, Shape s) {
  std::printf("%s%s\n", name, s.coefficient_name());
  s.slots = 0;
  Batch b(s, rows_of(s));
  make_alike(b);
  prepare(b);
  thin_moments(b);
  Memory tail(*backend, b.queries.size() / static_cast<std::size_t>(s.head_dim) * 4);
  for (const float radius_weight : {0.0F, 0.5F}) {
    check_topk(b, tail, radius_weight);
    check_rerank(b, tail);
  }
  check_sparse(b);
}

void test_shapes() {
  for (const int group : check::cases({1, 4, 7, 8, 16})) {
    for (const int dim : {64, 96, 128}) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = dim;
      s.rank = dim == 64 ? 16 : dim == 96 ? 72 : 160;
      s.pairing = group % 2 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
      s.value_type = (group + dim / 32) % 2 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = (group + dim / 32) % 2 ? SKV_BF16 : SKV_I8;
      s.chunk = group == 8 ? 16 : 8;
      check_shape(("G " + std::to_string(group) + ", D " + std::to_string(dim)).c_str(), s);
      s.coefficient_type = SKV_I8;
      check_shape(("G " + std::to_string(group) + ", D " + std::to_string(dim)).c_str(), s);
    }
  }
  for (const int dim : check::cases({12, 80, 256, 2})) {
    Shape s;
    s.key_value_heads = 3;
    s.query_heads = dim == 12 ? 48 : 12;
    s.head_dim = dim;
    s.rotary_dim = dim == 80 ? 40 : dim;
    s.rank = 48;
    s.landmark_type = dim == 256 ? SKV_I8 : SKV_BF16;
    check_shape(("D " + std::to_string(dim)).c_str(), s);
    s.coefficient_type = SKV_I8;
    s.rank = dim == 80 ? 33 : 48;
    check_shape(("D " + std::to_string(dim)).c_str(), s);
  }
}

// Indexes of many units, shared by several blocks; selections of many and of few; thresholds in a crowd.
void test_long_indexes() {
  for (const auto& [chunks, select, landmark_type] :
       {std::tuple{15343, 256, SKV_BF16}, std::tuple{15343, 1024, SKV_I8}, std::tuple{70000, 24, SKV_BF16}}) {
    std::printf("%d chunks, %d selected\n", chunks, select);
    Shape s;
    s.key_value_heads = 1;
    s.query_heads = 4;
    s.head_dim = s.rotary_dim = 64;
    s.rank = 16;
    s.select = select;
    s.landmark_type = landmark_type;
    s.coefficient_type = chunks == 70000 ? SKV_I8 : SKV_BF16;
    Batch b(s, {{8LL * chunks + 5, 8LL * chunks, 3, chunks + 7}});
    prepare(b);
    Memory tail(*backend, static_cast<std::uint64_t>(s.query_heads) * 4);
    check_topk(b, tail, 0.5F);
    check_rerank(b, tail);
    // Few different landmarks.
    auto& session = *b.sessions[0];
    const auto d = static_cast<std::size_t>(s.head_dim);
    if (landmark_type == SKV_BF16) {
      for (std::size_t c = 0; c < session.landmarks.size() / d; ++c) {
        std::copy_n(session.landmarks.begin() + static_cast<std::ptrdiff_t>(c % 3 * d), d,
                    session.landmarks.begin() + static_cast<std::ptrdiff_t>(c * d));
      }
      for (float& radius : session.radius) {
        radius = radius < 0 ? radius : 0.25F;
      }
      backend->copy(session.layer().landmarks, session.landmarks.data(), session.landmarks.size() * 2);
      backend->copy(session.layer().radius, session.radius.data(), session.radius.size() * 4);
      backend->synchronize();
      check_topk(b, tail, 0.5F);
    }
  }
}

// Radii so large that exponentials with and without them do not fit into one range of f32.
void test_large_radii() {
  std::printf("large radii\n");
  Shape s;
  s.key_value_heads = 2;
  s.query_heads = 8;
  s.slots = 0;
  Batch b(s, rows_of(s));
  prepare(b);
  for (auto& session : b.sessions) {
    for (float& radius : session->radius) {
      radius *= 100.0F;
    }
    write_radii(*session);
  }
  Memory tail(*backend, b.queries.size() / static_cast<std::size_t>(s.head_dim) * 4);
  check_topk(b, tail, 0.5F);
}

// --- Layers -------------------------------------------------------------------------------------

void check_layer(const Shape& s, int shortlist) {
  std::printf("layer, G %d, D %d, value type %d, landmark type %d%s, shortlist %d\n", s.group(), s.head_dim,
              s.value_type, s.landmark_type, s.coefficient_name(), shortlist);
  Batch b(s, rows_of(s));
  make_alike(b);
  prepare(b);
  thin_moments(b);
  const LayerStep step = step_layer(b, shortlist);
  Rests rests;
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    // With a rerank, everything is on the shortlist.
    const auto& selected = step.selected[pair];
    const auto listed = shortlist > 0 ? indexed(b, session, head) : selected;
    rests.push_back(rest_of(b, session, head, step.queries[at],
                            left_out(b, session, head, step.queries[at], listed, without(listed, selected))));
  });
  check_step(b, step, rests);
}

void test_layers() {
  for (const int shortlist : {0, 100}) {
    for (const int group : check::cases({1, 4, 8, 16})) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = group == 8 ? 80 : group == 1 ? 64 : 128;
      s.rank = 48;
      s.value_type = group == 4 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = group == 16 ? SKV_I8 : SKV_BF16;
      s.coefficient_type = (group == 4 || group == 8) == (shortlist == 0) ? SKV_I8 : SKV_BF16;
      s.slots = 40;
      check_layer(s, shortlist);
    }
  }
}

}  // namespace

int main() {
  return run([] {
    test_shapes();
    test_long_indexes();
    test_large_radii();
    test_layers();
  });
}
