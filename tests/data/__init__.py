"""Data sets, images, labels and projects. The scenarios, and the tests that hold them:

===================================================  ===============================================
scenario                                             test
===================================================  ===============================================
64 registered data sets, valid                       test_registered: a_valid_folder_passes
64 registered data sets, image missing               test_registered: a_missing_image_is_named
64 registered data sets, annotation missing          test_registered: a_missing_annotation_is_named
5 data sets whose package is absent                  test_registered: an_absent_package_is_the_cause
a class of one's own, by name and as class           test_layout: a_class_of_ones_own_is_asked
a class that cannot be asked, remote data            test_layout: what_cannot_be_looked_at_is_said
class folders of MMPretrain                          test_layout: class_folders_of_mmpretrain
wrong suffix of images, of labels                    test_layout: a_wrong_suffix_is_answered
a list of names, a label of it missing               test_layout: a_list_of_names_says
a test set without labels                            test_layout: a_test_set_without_labels_passes
objects of foreign classes alone                     test_layout: objects_of_foreign_classes_alone
a package that cannot be imported                    test_layout: a_package_that_cannot_be_imported
wrapped data sets, full ADE20K, folder around        test_layout: three tests
7 label conventions as MMSegmentation loads them     test_labels: values_become_what_mmseg_loads
7 label conventions as the loss takes them           test_labels: what_is_allowed_is_what_the_loss
255 without reduce_zero_label, 77 of two classes     test_labels: allowed_values, values_that_no_class
16-bit labels that wrap, colour, size, truncated     test_labels: broken_label_maps_are_found
1-bit, palette and 16-bit label maps                 test_labels: label_maps_of_every_depth_are_read
a label map of ignored pixels alone                  test_labels, test_check_sample, test_check_dataset
all label maps of ignored pixels alone               test_check_dataset: a_set_of_ignored_pixels_alone
heads with too few, too many, other classes          test_heads: five tests
ignore_index of head, data set, evaluator, step      test_heads: contradictions_are_refused
class weights of another number of classes           test_heads: contradictions_are_refused
detectors with too few, too many classes             test_heads: detectors_need_exactly_as_many
panoptic things, open vocabulary                     test_heads: two tests
CheckSample learns labels, also for --tta            test_heads: check_steps_learn_the_allowed_labels
truncated JPEG, PNG, TIFF, BMP, WebP                 test_files: truncation_is_found_*
damaged JPEG body: zeros, noise, hole, marker        test_files: damaged_jpeg_bodies_are_found
flipped bit of a PNG                                 test_files: a_flipped_bit_of_a_png
EXIF rotation of JPEG, PNG, TIFF, WebP               test_files: the_size_is_the_one_that_the_loader
TIFF of 1 to 12 bands, 8 and 16 bits, float          test_files: tiffs_of_many_bands_pass
NumPy, HDF5, gzip, zip                               test_files: arrays_and_archives_are_left
truncated PNG named in a pipeline                    test_check_sample: a_broken_file_is_named
COCO, 19 files that the loader accepts               test_coco_loader: accepted_files_are_read
COCO, 19 files that it fails on or misreads          test_coco_loader: refused_files_fail
COCO, 8 values such as NaN sizes                     test_coco_loader: values_that_cannot_be_used
COCO classes: one text, text file, twice, absent     test_coco_loader: four tests
COCO deep nesting, names out of the folder           test_coco_loader: two tests
COCO filtered images absent, test set bare           test_coco_loader: two tests
evaluator with another annotation file               test_coco_loader: the_evaluator_must_read
own project, two classes and 255                     test_own_projects, and with pretrained weights
own project, detection of one class                  test_own_projects
own project, four bands                              test_own_projects
===================================================  ===============================================
"""
