#include <algorithm>
#include <cfloat>
#include <vector>

#include "caffe/layers/fast_layers.hpp"
#include "caffe/layers/pooling_layer.hpp"
#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

/// Where the windows of a pooling lie.
struct Windows {
  int height, width, pooled_height, pooled_width;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

// Compares n outputs of a row with an input each, kStride apart. The stride is
// known to the compiler, which can then load several inputs at once.
template <int kStride>
inline __attribute__((always_inline)) void TakeLarger(int n, int stride,
    const float* bottom, int index, float* top, int* mask) {
  const int step = kStride > 0 ? kStride : stride;
  #pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    const float value = bottom[i * step];
    const bool larger = value > top[i];
    top[i] = larger ? value : top[i];
    mask[i] = larger ? index + i * step : mask[i];
  }
}

// The maxima of a channel of an image. The positions within the window are the
// outer loops, in Caffe's order, so that of equal values the same one is taken.
CAFFE_VECTOR_LOOP
void PoolPlane(const Windows& at, const float* bottom, float* top, int* mask) {
  for (int ph = 0; ph < at.pooled_height; ++ph) {
    std::fill(top, top + at.pooled_width, -FLT_MAX);
    std::fill(mask, mask + at.pooled_width, -1);
    const int start = ph * at.stride_h - at.pad_h;
    const int last = std::min(start + at.kernel_h, at.height);
    for (int h = std::max(start, 0); h < last; ++h) {
      for (int kw = 0; kw < at.kernel_w; ++kw) {
        // The outputs whose input at kw is not in the padding.
        const int shift = kw - at.pad_w;
        const int from =
            shift < 0 ? (at.stride_w - 1 - shift) / at.stride_w : 0;
        const int behind = at.width - shift;
        const int to = behind <= 0 ? 0 : std::min(at.pooled_width,
            (behind - 1) / at.stride_w + 1);
        const int index = h * at.width + from * at.stride_w + shift;
        if (from >= to) {
          continue;
        } else if (at.stride_w == 1) {
          TakeLarger<1>(to - from, 1, bottom + index, index, top + from,
                        mask + from);
        } else if (at.stride_w == 2) {
          TakeLarger<2>(to - from, 2, bottom + index, index, top + from,
                        mask + from);
        } else {
          TakeLarger<0>(to - from, at.stride_w, bottom + index, index,
                        top + from, mask + from);
        }
      }
    }
    top += at.pooled_width;
    mask += at.pooled_width;
  }
}

}  // namespace

/// @brief The maxima of windows on all threads, with Caffe's bits; averages and
///        a second top with the indices are left to Caffe's own.
class ThreadedPoolingLayer : public PoolingLayer<float> {
 public:
  explicit ThreadedPoolingLayer(const LayerParameter& param)
      : PoolingLayer<float>(param) {}

 protected:
  bool IsCovered(const vector<Blob<float>*>& top) const {
    return top.size() == 1 && layer_param_.pooling_param().pool() ==
        PoolingParameter_PoolMethod_MAX;
  }

  virtual void Forward_cpu(const vector<Blob<float>*>& bottom,
      const vector<Blob<float>*>& top) {
    if (!IsCovered(top)) {
      PoolingLayer<float>::Forward_cpu(bottom, top);
      return;
    }
    const Windows at = {height_, width_, pooled_height_, pooled_width_,
        kernel_h_, kernel_w_, stride_h_, stride_w_, pad_h_, pad_w_};
    const float* bottom_data = bottom[0]->cpu_data();
    float* top_data = top[0]->mutable_cpu_data();
    int* mask = max_idx_.mutable_cpu_data();
    const int planes = bottom[0]->num() * channels_;
    #pragma omp parallel for if (bottom[0]->count() >= kWorthThreads)
    for (int plane = 0; plane < planes; ++plane) {
      const size_t pooled = size_t(plane) * pooled_height_ * pooled_width_;
      PoolPlane(at, bottom_data + size_t(plane) * height_ * width_,
                top_data + pooled, mask + pooled);
    }
  }

  virtual void Backward_cpu(const vector<Blob<float>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom) {
    if (!propagate_down[0] || !IsCovered(top)) {
      PoolingLayer<float>::Backward_cpu(top, propagate_down, bottom);
      return;
    }
    const float* top_diff = top[0]->cpu_diff();
    float* bottom_diff = bottom[0]->mutable_cpu_diff();
    const int* mask = max_idx_.cpu_data();
    const int planes = bottom[0]->num() * channels_;
    const int size = height_ * width_;
    const int pooled = pooled_height_ * pooled_width_;
    #pragma omp parallel for if (bottom[0]->count() >= kWorthThreads)
    for (int plane = 0; plane < planes; ++plane) {
      float* diff = bottom_diff + size_t(plane) * size;
      const size_t first = size_t(plane) * pooled;
      std::fill(diff, diff + size, 0.f);
      for (size_t i = first; i < first + pooled; ++i) {
        if (mask[i] >= 0) {  // no value of the window was a number otherwise
          diff[mask[i]] += top_diff[i];
        }
      }
    }
  }
};

shared_ptr<Layer<float> > NewThreadedPooling(const LayerParameter& param) {
  return shared_ptr<Layer<float> >(new ThreadedPoolingLayer(param));
}

}  // namespace caffe
