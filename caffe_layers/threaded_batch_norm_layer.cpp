#include <algorithm>
#include <cmath>
#include <vector>

#include "caffe/layers/batch_norm_layer.hpp"
#include "caffe/layers/fast_layers.hpp"
#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

// A channel of all images, which is so many rows of n numbers, a stride apart.
CAFFE_VECTOR_LOOP
void Normalize(int rows, int n, size_t stride, float mean, float factor,
    const float* x, float* y) {
  for (int row = 0; row < rows; ++row, x += stride, y += stride) {
    #pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      y[i] = (x[i] - mean) * factor;
    }
  }
}

CAFFE_VECTOR_LOOP
void NormalizeGradient(int rows, int n, size_t stride, float mean_of_diff,
    float mean_of_product, float factor, const float* y, const float* y_diff,
    float* x_diff) {
  for (int row = 0; row < rows; ++row) {
    #pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      x_diff[i] =
          (y_diff[i] - (mean_of_product * y[i] + mean_of_diff)) * factor;
    }
    y += stride;
    y_diff += stride;
    x_diff += stride;
  }
}

}  // namespace

/**
 * @brief BatchNorm, a channel after the other: each stays in the cache for all
 *        that is done to it.
 *
 * variance_ holds sqrt(variance + eps) after the forward pass, as in Caffe's
 * own, and is all that the backward pass needs, besides x_norm_: temp_, as
 * large as the blob, is not used. Rows that are too short, such as those after
 * an InnerProduct, are left to Caffe's own.
 */
class ThreadedBatchNormLayer : public BatchNormLayer<float> {
 public:
  explicit ThreadedBatchNormLayer(const LayerParameter& param)
      : BatchNormLayer<float>(param) {}

 protected:
  virtual void Forward_cpu(const vector<Blob<float>*>& bottom,
      const vector<Blob<float>*>& top);
  virtual void Backward_cpu(const vector<Blob<float>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom);

 private:
  int Spatial(const Blob<float>& bottom) const {
    return bottom.num_axes() > 2 ? bottom.count(2) : 1;
  }
};

void ThreadedBatchNormLayer::Forward_cpu(const vector<Blob<float>*>& bottom,
    const vector<Blob<float>*>& top) {
  const int spatial = Spatial(*bottom[0]);
  if (spatial < kWorthRow) {
    BatchNormLayer<float>::Forward_cpu(bottom, top);
    return;
  }
  const int num = bottom[0]->shape(0);
  const double of_each_channel = double(num) * spatial;
  const float correction =
      of_each_channel > 1 ? of_each_channel / (of_each_channel - 1) : 1;
  const float* x = bottom[0]->cpu_data();
  float* y = top[0]->mutable_cpu_data();
  float* kept = use_global_stats_ ? NULL : x_norm_.mutable_cpu_data();
  float* means = mean_.mutable_cpu_data();
  float* variances = variance_.mutable_cpu_data();
  // The moving sums of the means and of the unbiased variances, and of their
  // weights.
  float* moving_means = blobs_[0]->mutable_cpu_data();
  float* moving_variances = blobs_[1]->mutable_cpu_data();
  float* weight = blobs_[2]->mutable_cpu_data();
  const float average = *weight == 0 ? 0 : 1 / *weight;
  if (!use_global_stats_) {
    *weight = *weight * moving_average_fraction_ + 1;
  }
  const size_t stride = size_t(channels_) * spatial;
  #pragma omp parallel for if (bottom[0]->count() >= kWorthThreads)
  for (int c = 0; c < channels_; ++c) {
    const size_t first = size_t(c) * spatial;
    if (use_global_stats_) {
      means[c] = average * moving_means[c];
      variances[c] = average * moving_variances[c];
    } else {
      means[c] = Sum(num, spatial, stride, x + first) / of_each_channel;
      variances[c] = SquaredDeviations(num, spatial, stride, x + first,
                                       means[c]) / of_each_channel;
      moving_means[c] = means[c] + moving_average_fraction_ * moving_means[c];
      moving_variances[c] = correction * variances[c] +
          moving_average_fraction_ * moving_variances[c];
    }
    variances[c] = std::sqrt(variances[c] + eps_);
    Normalize(num, spatial, stride, means[c], 1 / variances[c], x + first,
              y + first);
    for (int n = 0; n < num && kept; ++n) {
      std::copy(y + first + n * stride, y + first + n * stride + spatial,
                kept + first + n * stride);
    }
  }
}

void ThreadedBatchNormLayer::Backward_cpu(const vector<Blob<float>*>& top,
    const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom) {
  const int spatial = Spatial(*bottom[0]);
  if (spatial < kWorthRow) {
    BatchNormLayer<float>::Backward_cpu(top, propagate_down, bottom);
    return;
  }
  const int num = bottom[0]->shape(0);
  const double of_each_channel = double(num) * spatial;
  const float* y = use_global_stats_ ? NULL : x_norm_.cpu_data();
  const float* y_diff = top[0]->cpu_diff();
  float* x_diff = bottom[0]->mutable_cpu_diff();  // may be y_diff
  const float* deviations = variance_.cpu_data();
  const size_t stride = size_t(channels_) * spatial;
  #pragma omp parallel for if (bottom[0]->count() >= kWorthThreads)
  for (int c = 0; c < channels_; ++c) {
    const size_t first = size_t(c) * spatial;
    if (use_global_stats_) {
      Normalize(num, spatial, stride, 0, 1 / deviations[c], y_diff + first,
                x_diff + first);
      continue;
    }
    const float mean_of_diff =
        Sum(num, spatial, stride, y_diff + first) / of_each_channel;
    const float mean_of_product =
        Dot(num, spatial, stride, y_diff + first, y + first) / of_each_channel;
    NormalizeGradient(num, spatial, stride, mean_of_diff, mean_of_product,
        1 / deviations[c], y + first, y_diff + first, x_diff + first);
  }
}

shared_ptr<Layer<float> > NewThreadedBatchNorm(const LayerParameter& param) {
  return shared_ptr<Layer<float> >(new ThreadedBatchNormLayer(param));
}

}  // namespace caffe
