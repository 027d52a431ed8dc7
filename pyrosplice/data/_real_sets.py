"""Small sets of real counts that come with the package, one loader each."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from pyrosplice.data._packed import about, set_names, unpacked
from pyrosplice.errors import check_switches


def available_sets() -> pd.DataFrame:
    """List the sets that come with the package: what each holds, where it is from, and its license.

    Returns
    -------
    DataFrame
        By name, for which there is ``pyrosplice.data.load_<name>``: ``title``, ``repository``, ``commit``, ``files``,
        ``publication``, ``license``, ``changes`` (what the set lacks or has beside its source), ``note``,
        ``license_text``. The same is in ``uns`` of each set.

    Examples
    --------
    >>> from pyrosplice.data import available_sets
    >>> available_sets()["license"].to_dict()["glioblastoma"]
    'MIT'
    """
    return pd.DataFrame({name: about(name) for name in set_names()}).T.rename_axis("name")


def load_bulb_families() -> AnnData:
    """Load counts of gene families in the mouse olfactory bulb, for isoform usage in space. Paralogs, not isoforms.

    260 spots of Spatial Transcriptomics, replicate 11 of Ståhl et al. 2016 (Science 353:78), and 110 genes in 30
    families of 2 to 9. No small set of real isoforms in space may be redistributed; proportions of paralogs vary with
    cell types as those of isoforms do, but they are separate genes, and nothing is spliced here.

    Source: https://github.com/almaan/sepal at 9befea4, file ``compare/spark-raw_data/Rep11_MOB_count_matrix-1.tsv.gz``,
    MIT license; ``uns["changes"]`` says what was left out.

    Returns
    -------
    AnnData
        ``layers["counts"]`` int32 (``X``: the same, float32); ``var["gene_symbol"]`` the family;
        ``obs["total_counts"]`` of all genes of the source; ``obsm["spatial"]`` in units of the array. A new object
        at every call.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import load_bulb_families
    >>> adata = load_bulb_families()
    >>> adata.shape, adata.var["gene_symbol"].nunique()
    ((260, 110), 30)
    >>> model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False, isoform_effect="symmetric")
    >>> model.setup_data(adata, group_gene_by_n_iso=True)
    >>> model.n_genes
    30
    """
    return unpacked("bulb_families")


def load_glioblastoma() -> AnnData:
    """Load counts of tumor cells of five patients without and with a drug, for expression and for mixtures per patient.

    5,000 human cells of slices of glioblastoma (Zhao et al. 2021, Genome Medicine 13:82), 500 of each of 5 patients ×
    {ctrl, panobinostat}, and 300 genes. Cells of a patient are alike: patients and samples are the units, not cells.

    Source: https://github.com/const-ae/lemur at 0e62bc1, file ``data/glioblastoma_example_data.rda``, MIT license; age
    and sex of the patients were left out. Cells and genes were chosen by the source.

    Returns
    -------
    AnnData
        ``layers["counts"]`` int32 (``X``: the same, float32); ``var_names`` Ensembl's, ``var["gene_symbol"]``; ``obs``
        ``patient_id``, ``condition``, ``sample_id``, categories. A new object at every call.

    Examples
    --------
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import load_glioblastoma
    >>> adata = load_glioblastoma()
    >>> adata.obs.groupby("condition", observed=True).size().to_dict()
    {'ctrl': 2500, 'panobinostat': 2500}
    >>> few = adata[::20, :10].copy()
    >>> glm = ExpressionGLM("~ 1 + patient_id + condition").fit(few, layer="counts")
    >>> len(glm.test(factor="condition").summary())
    10
    """
    return unpacked("glioblastoma")


def load_lung_junctions() -> AnnData:
    """Load reads of splice junctions in the cells of a human lung: real alternative splicing, without coordinates.

    25,054 cells (10x, donor P2 of Travaglini et al. 2020, Nature 587:619) of 39 types from 8 samples, and the junctions
    of *CD47*, *LMO7*, *MYL6* and *RPS24*: 35 features in 15 groups. A group has the junctions that share their start
    (anchor A) or their end (anchor B): the choice among them is the usage. A junction may be in one group of each kind;
    these two are counted from the same reads, and their tests are not independent.

    Source: https://github.com/salzman-lab/SpliZ at 594532c, file ``small_data/small.pq`` (Olivieri et al. 2022, Nature
    Methods 19:307), MIT license; made wide, nothing left out.

    Returns
    -------
    AnnData
        ``layers["counts"]`` int32 (``X``: the same, float32); ``var`` ``gene_symbol``, ``usage_group`` (give it as
        ``group_iso_by``), ``anchor``, ``junc_start``, ``junc_end``; ``obs`` ``compartment``, ``cell_type``, ``sample``,
        categories. A new object at every call.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import load_lung_junctions
    >>> adata = load_lung_junctions()
    >>> adata.shape
    (25054, 35)
    >>> few = adata[::50].copy()
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(few, group_iso_by="usage_group", design_mtx="compartment", group_gene_by_n_iso=True)
    >>> model.covariate_names
    ['compartment_endothelial', 'compartment_epithelial', 'compartment_immune', 'compartment_stromal']
    """
    return unpacked("lung_junctions")


def load_breast_sections(*, families: bool = False) -> AnnData:
    """Load four consecutive sections of a human breast cancer, for models with ``section_key``.

    1,031 spots of Spatial Transcriptomics (Ståhl et al. 2016, Science 353:78), 251 to 264 a section, and 1,521 genes.
    Coordinates of the sections overlap. The sections are of one block, cut one after the other: neighbouring ones
    resemble each other, and are no independent samples of patients.

    Source: https://github.com/raphael-group/paste at 5f0d58c, files ``sample_data/slice1.csv`` to ``slice4.csv`` and
    their ``_coor.csv`` (Zeira et al. 2022, Nature Methods 19:567), BSD 3-clause license.

    Parameters
    ----------
    families
        The 112 genes of 33 families only (2 to 4 paralogs each, not isoforms), with ``var["gene_symbol"]`` their
        family, for :class:`~pyrosplice.SplisosmGLMM`. Else all genes, ``var["gene_symbol"]`` their own names.

    Returns
    -------
    AnnData
        ``layers["counts"]`` int32 (``X``: the same, float32); ``var["family"]`` ("" for none); ``obs["section"]``, a
        category, ``obs["total_counts"]`` of all genes; ``obsm["spatial"]`` in units of the array. A new object at
        every call.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import load_breast_sections
    >>> adata = load_breast_sections(families=True)
    >>> adata.obs["section"].value_counts(sort=False).to_dict()
    {'s1': 254, 's2': 251, 's3': 264, 's4': 262}
    >>> model = SplisosmGLMM(graph="union")
    >>> model.setup_data(adata, section_key="section", group_gene_by_n_iso=True)
    >>> model.n_genes
    33
    """
    check_switches(families=families)
    adata = unpacked("breast_sections")
    adata.var["gene_symbol"] = adata.var["family"] if families else adata.var_names.to_numpy(dtype=object)
    return adata[:, np.flatnonzero(adata.var["family"] != "")].copy() if families else adata


def load_allele_counts() -> AnnData:
    """Load reads of two alleles at sites of the genome in single cells, for binomial and over-dispersed usage.

    952 human cells of several donors (Huang et al. 2019, Genome Biology 20:273) and 400 sites; most cells have no read
    or one at a site. Cells of one donor share their genotype, so that shares of reads vary more than binomially; who is
    of which donor is not given.

    Source: https://github.com/single-cell-genetics/vireo at e365463, files ``data/cellSNP_mat/cellSNP.tag.AD.mtx`` and
    ``cellSNP.tag.DP.mtx``, Apache 2.0 license; names of sites and cells were left out.

    Returns
    -------
    AnnData
        ``layers["counts"]`` int32 (``X``: the same, float32); ``var["gene_symbol"]`` the site, ``var["allele"]``
        ``"alt"`` or ``"ref"``. A new object at every call.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import load_allele_counts
    >>> from pyrosplice.likelihoods import BetaBinomial
    >>> model = SplisosmGLMM("glm", likelihood=BetaBinomial())
    >>> model.setup_data(load_allele_counts(), min_counts=100)
    >>> model.n_genes, model.n_spots
    (8, 952)
    """
    return unpacked("allele_counts")
