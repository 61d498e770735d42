"""Metrics and statistics: what compression did to the clinical result. Numpy and scipy; no torch, no files.

overlap         Dice, agreement, voxel counts of all structures in one pass
surface         NSD and HD95 in millimetres
segmentation    one case → every metric of every structure
classification  AUROC, AUPRC, sensitivity, specificity, operating point
statistics      cluster bootstrap by patient, size of a study
noninferiority  the verdict
guard           what no verdict may hide: structures and classes that lost
doubts          do two networks agree at all
chance          is the parent itself any good
replicated      replicates of every metric
cases           what is known of each case
summary         many cases → the parts of `result.json`
empty           the one rule for structures that are absent
"""
