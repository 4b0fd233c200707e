"""Images, from lists and files to the arrays that a net takes. No Caffe."""
