"""Help of the command line, in letters that every console has."""

PROGRAM = """\
Count and mixture models for single-cell and spatial transcriptomics: from a file to a folder with
tables (csv), figures (png), a page that explains both (index.html) and run.json, which says how to
run it again. 'pyrosplice JOB --help' says what a job answers, what it reads, and what it writes."""

CODES = """\
exit codes: 0 done; 1 refused or failed, standard error says why; 2 wrong options; 130 interrupted.
What was found is written to standard output, progress and warnings to standard error."""

USAGE = """\
Which genes use their isoforms differently: in space, or with a covariate?

Reads raw counts of isoforms (layer 'counts', else X), the gene of each isoform (column 'gene_symbol'
of var) and coordinates (obsm 'spatial'). Isoforms of fewer than 10 molecules, and genes with fewer
than two isoforms left, are left out. Every gene is fitted by a multinomial mixed model with a
spatial random effect, by marginal likelihood; without coordinates, by the model without that effect.
Covariates that are numbers are slopes, all others have a coefficient for each label."""

USAGE_AFTER = """\
examples:
  pyrosplice usage tissue.h5ad --covariate layer --out results
  pyrosplice usage tissue.h5ad --formula "~ layer + log(total)" --section-key slide --jobs 2 --out results
  pyrosplice usage cells.zarr --layer X --no-space --covariate condition --missing drop --out results

tables:
  genes.csv                a row a gene: depth, how its fit ended, sigma (how far usage varies
                           between spots, logit scale), theta (share of it that neighbors share)
  spatial_variability.csv  score test a gene: statistic, pvalue, pvalue_adj (Benjamini-Hochberg)
  differential_usage.csv   score test a gene and covariate
  effects.csv              log odds of each isoform against its gene's last one, a unit of covariate
  usage_points.csv         the same as percentage points of usage, with 95 % intervals
A test that could not be made has no p-value, and column 'reason' says why. Beside them:
model.pyrosplice (SplisosmGLMM.load reads it), fitted_ratios.h5ad (usage of every isoform in every
spot, as fitted) and, with --write-h5ad, annotated.h5ad."""

EXPRESSION = """\
Which genes answer to a condition, and which vary in space?

Reads raw counts (layer 'counts', else X) and the columns of obs that the formula names. Columns are
labels unless --as-numeric names them. Every gene is fitted by a negative-binomial regression, with
total counts as size factors; (1 | donor) is a random intercept of each donor. Nothing is random:
there is no seed. Genes are tested for each --test; with --spatial-key, for spatial variability too."""

EXPRESSION_AFTER = """\
examples:
  pyrosplice expression cells.h5ad --formula "~ condition + (1 | donor)" --test condition --out results
  pyrosplice expression cells.h5ad --formula "~ age + condition" --as-numeric age --test condition
      --reference condition=control --method lrt --out results
  pyrosplice expression tissue.h5ad --formula "~ region" --test region --spatial-key spatial --out results

methods:
  wald     estimate over its standard error: many cells, counts that are not few
  lrt      likelihood ratio: as wald, and better where counts are few
  score    many cells, few counts, one group far smaller than the other
  robust   many cells whose noise is not negative binomial
  ql       few samples (pseudobulk): quasi-likelihood F with moderated dispersions
  cluster, glmm   cells of a few --donors, where the formula has no (1 | donor)
Cells of one donor are alike: with several donors, put (1 | donor) into the formula, or name --donors.

tables:
  genes.csv                a row a gene: mean count, how its fit ended
  coefficients.csv         a row a gene and coefficient, natural logarithms
  test_FACTOR.csv          a row a gene: log2fc with its interval, pvalue, pvalue_adj, reason
  variance_components.csv  with random effects: their standard deviations
  spatial_variability.csv  with --spatial-key: score test a gene
Beside them: model.pyrosplice (ExpressionGLM.load) and, with --write-h5ad, annotated.h5ad."""

STATES = """\
Which states are cells in, and how do patients differ in them?

Reads a representation of cells (obsm 'X_pca', else an X of few columns) and, with --patient-key, the
patient of each cell. A Gaussian mixture is fitted to the cells of every patient (or of all, without
the key). Of several numbers of components one is chosen for each patient, by 5-fold cross-validation
unless --select says otherwise, and fitted to all of its cells again."""

STATES_AFTER = """\
examples:
  pyrosplice states cells.h5ad --patient-key patient --components 4 --out results
  pyrosplice states cells.h5ad --patient-key patient --components 1-8 --prior pooled --out results
  pyrosplice states cells.h5ad --use-rep X_scVI --components 2,4,6 --select bic --out results

tables:
  components.csv  a row a patient, component and feature: weight, mean, standard deviation
  cells.csv       a row a cell: patient, likeliest component, its probability (responsibility)
  selection.csv   of several numbers: criteria by patient and number
  distances.csv   mixture-Wasserstein distances between patients (needs POT)
With --write-h5ad, annotated.h5ad has the mixtures in uns['states'], labels in obs['states_comp'] and
probabilities in obsm['states_resp']."""

DEMO = """\
The whole job 'usage' on a tissue that is simulated from the model, in about a minute: the report sets
estimates beside the truth. With --data it is 'pyrosplice usage' of that file."""

DEMO_AFTER = """\
examples:
  pyrosplice demo --out demo
  pyrosplice demo --out demo --force --n-spots 144 --n-genes 8
  pyrosplice demo --out results --data tissue.h5ad --covariate layer

tables: those of 'pyrosplice usage --help', and recovered_theta.csv, recovered_sigma.csv and
recovered_effect.csv with estimates beside the truth."""

JOBS = {
    "usage": (USAGE, USAGE_AFTER),
    "expression": (EXPRESSION, EXPRESSION_AFTER),
    "states": (STATES, STATES_AFTER),
    "demo": (DEMO, DEMO_AFTER),
}
