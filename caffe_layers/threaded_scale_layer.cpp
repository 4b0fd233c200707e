#include <algorithm>
#include <vector>

#include "caffe/layers/fast_layers.hpp"
#include "caffe/layers/scale_layer.hpp"
#include "caffe/layers/vector_loops.hpp"

namespace caffe {

namespace {

// A channel of all images, which is so many rows of n numbers, a stride apart.
CAFFE_VECTOR_LOOP
void ScaleRows(int rows, int n, size_t stride, float scale, const float* bottom,
    float* top) {
  for (int row = 0; row < rows; ++row, bottom += stride, top += stride) {
    #pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      top[i] = scale * bottom[i];
    }
  }
}

// An image. kept, unless it is NULL, gets what bottom had, which may be top.
CAFFE_VECTOR_LOOP
void ScaleImage(int channels, int n, const float* scale, const float* bias,
    const float* bottom, float* top, float* kept) {
  for (int c = 0; c < channels; ++c, bottom += n, top += n) {
    const float factor = scale[c];
    const float shift = bias ? bias[c] : 0;
    if (kept) {
      std::copy(bottom, bottom + n, kept);
      kept += n;
    }
    #pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      top[i] = factor * bottom[i] + shift;
    }
  }
}

}  // namespace

/**
 * @brief Scale with learnt factors for each channel, all in one pass.
 *
 * A second bottom and rows too short to be worth a loop of their own are left
 * to Caffe's own.
 */
class ThreadedScaleLayer : public ScaleLayer<float> {
 public:
  explicit ThreadedScaleLayer(const LayerParameter& param)
      : ScaleLayer<float>(param) {}

 protected:
  bool IsCovered(const vector<Blob<float>*>& bottom) const {
    return bottom.size() == 1 && inner_dim_ >= kWorthRow;
  }

  virtual void Forward_cpu(const vector<Blob<float>*>& bottom,
      const vector<Blob<float>*>& top) {
    if (!IsCovered(bottom)) {
      ScaleLayer<float>::Forward_cpu(bottom, top);
      return;
    }
    const float* bottom_data = bottom[0]->cpu_data();
    float* top_data = top[0]->mutable_cpu_data();
    float* kept = bottom[0] == top[0] ? temp_.mutable_cpu_data() : NULL;
    const float* scale = blobs_[0]->cpu_data();
    const float* bias = bias_layer_ ? blobs_[bias_param_id_]->cpu_data() : NULL;
    const size_t image = size_t(scale_dim_) * inner_dim_;
    #pragma omp parallel for if (top[0]->count() >= kWorthThreads)
    for (int outer = 0; outer < outer_dim_; ++outer) {
      const size_t first = outer * image;
      ScaleImage(scale_dim_, inner_dim_, scale, bias, bottom_data + first,
                 top_data + first, kept ? kept + first : NULL);
    }
  }

  virtual void Backward_cpu(const vector<Blob<float>*>& top,
      const vector<bool>& propagate_down, const vector<Blob<float>*>& bottom) {
    if (!IsCovered(bottom)) {
      ScaleLayer<float>::Backward_cpu(top, propagate_down, bottom);
      return;
    }
    const bool in_place = bottom[0] == top[0];
    const float* top_diff = top[0]->cpu_diff();
    const float* bottom_data = (in_place ? &temp_ : bottom[0])->cpu_data();
    const float* scale = blobs_[0]->cpu_data();
    float* scale_diff =
        param_propagate_down_[0] ? blobs_[0]->mutable_cpu_diff() : NULL;
    float* bias_diff = bias_layer_ && param_propagate_down_[bias_param_id_] ?
        blobs_[bias_param_id_]->mutable_cpu_diff() : NULL;
    float* bottom_diff =
        propagate_down[0] ? bottom[0]->mutable_cpu_diff() : NULL;
    const size_t stride = size_t(scale_dim_) * inner_dim_;
    #pragma omp parallel for if (top[0]->count() >= kWorthThreads)
    for (int channel = 0; channel < scale_dim_; ++channel) {
      const size_t first = size_t(channel) * inner_dim_;
      if (scale_diff) {
        scale_diff[channel] += Dot(outer_dim_, inner_dim_, stride,
                                   top_diff + first, bottom_data + first);
      }
      if (bias_diff) {
        bias_diff[channel] += Sum(outer_dim_, inner_dim_, stride,
                                  top_diff + first);
      }
      if (bottom_diff) {  // last, as it may be top_diff
        ScaleRows(outer_dim_, inner_dim_, stride, scale[channel],
                  top_diff + first, bottom_diff + first);
      }
    }
  }
};

shared_ptr<Layer<float> > NewThreadedScale(const LayerParameter& param) {
  return shared_ptr<Layer<float> >(new ThreadedScaleLayer(param));
}

}  // namespace caffe
