// Vectors of channels. Included once per instruction set: ISA names the namespace, LANES the floats of a register.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#ifndef ISA
#error "compile with -DISA=... -DLANES=..., as CMakeLists.txt does"
#endif

#define INLINE inline __attribute__((always_inline))

namespace ISA {

template <int N> struct Lanes {
  typedef float Values __attribute__((vector_size(4 * N)));
  typedef int32_t Mask __attribute__((vector_size(4 * N)));
};
template <int N> using Values = typename Lanes<N>::Values;
template <int N> using Mask = typename Lanes<N>::Mask;

template <int N> INLINE Values<N> load(const float *p) {
  Values<N> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class V> INLINE void store(float *p, V v) { std::memcpy(p, &v, sizeof(v)); }

// The values where the mask is set, 0 elsewhere: an infinite value that is masked out leaves no NaN behind.
template <int N> INLINE Values<N> where(Mask<N> mask, Values<N> values) {
  return reinterpret_cast<Values<N>>(mask & reinterpret_cast<Mask<N>>(values));
}

// A NaN passes, as in torch.
template <int N> INLINE Values<N> relu(Values<N> x) { return where<N>(~(x <= 0.0f), x); }

template <int N> struct Width {
  static constexpr int lanes = N;
};

// body(Width<N>, c) for all channels, in the widest vectors that fit.
template <class Body> INLINE void for_channels(long channels, Body body) {
  long c = 0;
  for (; c + LANES <= channels; c += LANES) body(Width<LANES>{}, c);
  if constexpr (LANES > 8)
    if (c + 8 <= channels) body(Width<8>{}, c), c += 8;
  if constexpr (LANES > 4)
    if (c + 4 <= channels) body(Width<4>{}, c), c += 4;
  for (; c < channels; c++) body(Width<1>{}, c);
}

// Floats on a cache line's boundary: a vector in the middle of two lines costs two loads. All zero at first.
class Scratch {
 public:
  explicit Scratch(long floats) {
    const size_t bytes = (sizeof(float) * floats + 63) / 64 * 64;
    data_ = static_cast<float *>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  float *get() const { return data_; }

 private:
  float *data_;
};

}  // namespace ISA
