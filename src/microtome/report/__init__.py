"""Result files → pages that people read: HTML report, model card, comparison. Computes nothing that is evidence."""
