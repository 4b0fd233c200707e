#ifndef CAFFE_VECTOR_LOOPS_HPP_
#define CAFFE_VECTOR_LOOPS_HPP_

#include <omp.h>

#include <cstddef>
#include <cstdint>

// A loop is compiled for several generations of processors; the one that runs
// is chosen when the library is loaded. -ffp-contract=off keeps a product and a
// sum from being fused, and sums have the same number of lanes everywhere, so
// all of them give the same bits.
#define CAFFE_VECTOR_LOOP \
    __attribute__((target_clones("avx512f", "avx2", "default")))

namespace caffe {

// Shorter blobs are not worth waking another thread for.
const int kWorthThreads = 32768;
// Shorter rows are not worth a loop of their own.
const int kWorthRow = 4;

/**
 * @brief Divides a blob among all threads: calls loop(first, n) for the part
 *        of each.
 */
template <typename Loop>
void ForParts(int count, const Loop& loop) {
  #pragma omp parallel if (count >= kWorthThreads)
  {
    const int64_t threads = omp_get_num_threads();
    const int64_t thread = omp_get_thread_num();
    const int first = thread * count / threads;
    loop(first, static_cast<int>((thread + 1) * count / threads) - first);
  }
}

// In these, x is so many rows of n numbers, a stride apart: a channel of all
// images.

/// @brief The sum of x.
double Sum(int rows, int n, size_t stride, const float* x);
/// @brief The sum of the products of x and y.
double Dot(int rows, int n, size_t stride, const float* x, const float* y);
/// @brief The sum of the squares of x - mean.
double SquaredDeviations(int rows, int n, size_t stride, const float* x,
    float mean);
/**
 * @brief Adds the sum of each channel to sums.
 *
 * @param x (num x channels x spatial)
 * @param sums (channels)
 */
void AddChannelSums(int num, int channels, int spatial, const float* x,
    float* sums);

}  // namespace caffe

#endif  // CAFFE_VECTOR_LOOPS_HPP_
