#include <cstring>

#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

// 16 sums side by side, in as many registers as the processor needs for them.
// Those of a row are added to wider ones, so that errors do not add up.
const int kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef double WideLanes __attribute__((vector_size(kLanes * sizeof(double))));

// Macros, as a function that takes or returns lanes would depend on the target.
#define CAFFE_LOAD(lanes, pointer) memcpy(&lanes, pointer, sizeof(lanes))
#define CAFFE_ADD_LANES(total, wide) \
    for (int lane = 0; lane < kLanes; ++lane) { total += wide[lane]; }

}  // namespace

CAFFE_VECTOR_LOOP
double Sum(int rows, int n, size_t stride, const float* x) {
  WideLanes wide = {0};
  double total = 0;
  for (int row = 0; row < rows; ++row, x += stride) {
    Lanes sums = {0}, a;
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      CAFFE_LOAD(a, x + i);
      sums += a;
    }
    wide += __builtin_convertvector(sums, WideLanes);
    for (; i < n; ++i) {
      total += x[i];
    }
  }
  CAFFE_ADD_LANES(total, wide);
  return total;
}

CAFFE_VECTOR_LOOP
double Dot(int rows, int n, size_t stride, const float* x, const float* y) {
  WideLanes wide = {0};
  double total = 0;
  for (int row = 0; row < rows; ++row, x += stride, y += stride) {
    Lanes sums = {0}, a, b;
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      CAFFE_LOAD(a, x + i);
      CAFFE_LOAD(b, y + i);
      sums += a * b;
    }
    wide += __builtin_convertvector(sums, WideLanes);
    for (; i < n; ++i) {
      total += x[i] * y[i];
    }
  }
  CAFFE_ADD_LANES(total, wide);
  return total;
}

CAFFE_VECTOR_LOOP
double SquaredDeviations(int rows, int n, size_t stride, const float* x,
    float mean) {
  WideLanes wide = {0};
  double total = 0;
  for (int row = 0; row < rows; ++row, x += stride) {
    Lanes sums = {0}, a;
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      CAFFE_LOAD(a, x + i);
      a -= mean;
      sums += a * a;
    }
    wide += __builtin_convertvector(sums, WideLanes);
    for (; i < n; ++i) {
      const float deviation = x[i] - mean;
      total += deviation * deviation;
    }
  }
  CAFFE_ADD_LANES(total, wide);
  return total;
}

void AddChannelSums(int num, int channels, int spatial, const float* x,
    float* sums) {
  const size_t image = size_t(channels) * spatial;
  #pragma omp parallel for if (num * image >= kWorthThreads)
  for (int c = 0; c < channels; ++c) {
    sums[c] += Sum(num, spatial, image, x + size_t(c) * spatial);
  }
}

}  // namespace caffe
