#ifndef CAFFE_ONEDNN_PASS_HPP_
#define CAFFE_ONEDNN_PASS_HPP_

#include <dnnl.hpp>

#include <memory>
#include <vector>

namespace caffe {

/**
 * @brief Memory that the passes of all layers use in turn, one per thread.
 *
 * It lives as long as a layer that has used it, and is as large as the largest
 * pass.
 */
class OneDnnArena {
 public:
  /// @brief The arena of this thread.
  static std::shared_ptr<OneDnnArena> Get();
  ~OneDnnArena();
  /// @brief Memory of at least so many bytes. Throws std::bad_alloc.
  char* Reserve(size_t bytes);
  dnnl::stream& stream() { return stream_; }

 private:
  OneDnnArena();
  dnnl::stream stream_;
  char* data_;
  size_t size_;
};

/**
 * @brief A oneDNN primitive that works on Caffe's blobs.
 *
 * Blobs are plain (NCHW), but the primitive wants its operands in layouts of
 * its own: each is reordered into the arena before, or out of it afterwards.
 * The weights are reordered at every run, too, because whoever holds a pointer
 * to them, such as pycaffe, may change them unnoticed.
 */
class OneDnnPass {
 public:
  enum Direction { IN, OUT, ADD };

  OneDnnPass() : scratch_(0) {}
  /// @brief Takes over a primitive; its operands are given by Operand.
  template <typename Descriptor>
  void Init(const Descriptor& descriptor) {
    Start(dnnl::primitive(descriptor), descriptor.scratchpad_desc());
  }
  /**
   * @brief Adds an operand.
   *
   * @param argument oneDNN's name for it, such as DNNL_ARG_SRC
   * @param plain the layout of the blob
   * @param wanted the layout that the primitive wants
   * @param direction ADD adds the output to what is in the blob
   */
  void Operand(int argument, const dnnl::memory::desc& plain,
      const dnnl::memory::desc& wanted, Direction direction);
  /// @brief Runs it on the blobs' data, in the order of the operands.
  void Run(const std::vector<const float*>& blobs, OneDnnArena* arena);

  static dnnl::engine& Engine();
  /// @brief Those that a primitive must have: its scratchpad is the arena's.
  static dnnl::primitive_attr Attributes();

 private:
  struct Entry {
    int argument;
    Direction direction;
    bool reordered;
    size_t offset;  // in the arena
    dnnl::memory blob, own;
    dnnl::reorder reorder;
  };

  void Start(const dnnl::primitive& primitive,
      const dnnl::memory::desc& scratchpad);
  size_t Place(const dnnl::memory::desc& what);

  dnnl::primitive primitive_;
  std::vector<Entry> entries_;
  dnnl::memory scratchpad_;
  size_t scratchpad_offset_;
  size_t scratch_;  // bytes of the arena
};

}  // namespace caffe

#endif  // CAFFE_ONEDNN_PASS_HPP_
