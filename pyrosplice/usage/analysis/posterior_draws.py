"""The part of :class:`~pyrosplice.SplisosmGLMM` that draws from the posterior of many genes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr

from pyrosplice.errors import InvalidArgumentError, check_integer, check_option
from pyrosplice.modes import works_in_any_mode
from pyrosplice.posterior.draws import n_chains
from pyrosplice.posterior.genes import joined
from pyrosplice.posterior.memory import require_memory
from pyrosplice.posterior.nuts import NutsOptions
from pyrosplice.posterior.sampling import METHODS
from pyrosplice.posterior.tree import check_groups, numbers_per_draw
from pyrosplice.usage.analysis.effects import UsageEffects


@works_in_any_mode
class UsagePosterior(UsageEffects):
    """Posterior draws of many genes; see :class:`~pyrosplice.SplisosmGLMM`."""

    def posterior(
        self,
        genes: str | Sequence[str] | None = None,
        *,
        num_samples: int = 1000,
        method: str = "laplace",
        hyper: str = "plug-in",
        groups: Sequence[str] | None = None,
        usage: bool = False,
        seed: int = 0,
        nuts_options: NutsOptions | None = None,
        max_memory: str | float | None = None,
    ) -> xr.DataTree:
        """Posterior draws of the fitted models as one ``xarray.DataTree`` with the groups that ArviZ reads.

        Coordinates are names: ``gene`` (in the order asked for), ``spot`` (``obs_names``), ``covariate``, and
        ``isoform_name`` ``(gene, isoform)`` (``var_names``). Genes with the same number of isoforms are drawn as one
        batch. Where genes differ in that number, those with fewer are padded with NaN along ``isoform``, ``logit``
        and ``component`` (one tree, in which ``tree["posterior"].theta`` has every gene, is worth more than one a
        number), and their isoforms are ``""``; counts are floats then. :func:`pyrosplice.posterior.one_gene` takes a
        gene out without its padding, isoforms by name; the tables of :mod:`pyrosplice.posterior` know of it.

        A factor of the design has the coefficients that were fitted, of each level against the first.

        Parameters
        ----------
        genes
            Name(s) of the genes to draw from; all by default. The tree is large: the counts alone are draws × genes ×
            spots × isoforms, so draw from many genes with ``groups=()``.
        num_samples, method, hyper, groups, usage, seed, nuts_options, max_memory
            As of :meth:`pyrosplice.MultinomGLM.posterior`.

        Raises
        ------
        KeyError
            A name that is not in ``gene_names``.
        InvalidArgumentError
            No gene; and as of :meth:`pyrosplice.MultinomGLM.posterior`, a joint fit among it.
        NotReadyError
            Before ``setup_data`` or ``fit``.
        """
        prepared, fit = self._ready(), self._ready_fit()
        positions = self._positions(genes)
        spec = self._spec(self.model_type, with_design=fit.with_design)
        names = {"spot": prepared.data.adata.obs_names}
        if fit.with_design and prepared.design is not None:
            names["covariate"] = [prepared.design.names[p] for p in prepared.design.estimable]
        batches = prepared.batches(len(prepared.counts), group=True)
        parts = [own for batch in batches if (own := [gene for gene in batch if gene in positions])]
        models = [spec.rebuild_estimable(self._counts(prepared, own), [fit.genes[g] for g in own]) for own in parts]
        numbers: Counter[str] = Counter()
        check_option("method", method, METHODS)
        check_integer("num_samples", num_samples, least=4 if method == "nuts" else 1)
        widest = max(model.n_isos for model in models)
        for problem in (model.posterior_problem() for model in models):
            made = check_groups(problem, groups, usage=usage)
            sizes = numbers_per_draw(problem, problem.n_genes, made, usage=usage, method=method, n_isos=widest)
            numbers.update(sizes)
        require_memory(numbers, n_chains(method, nuts_options) * num_samples, max_memory)
        trees = [
            model.posterior(
                num_samples=num_samples,
                method=method,
                hyper=hyper,
                names=names | {"gene": [prepared.gene_names[gene] for gene in own]},
                groups=groups,
                usage=usage,
                seed=seed,
                nuts_options=nuts_options,
                max_memory="inf",
            )
            for model, own in zip(models, parts, strict=True)
        ]
        isoforms = {
            prepared.gene_names[gene]: list(prepared.data.adata.var_names[prepared.data.columns[gene]])
            for gene in positions
        }
        return joined(trees, list(isoforms), isoforms)

    def _positions(self, genes: Any) -> list[int]:
        """Positions of the genes that are named, each once; of all for None."""
        if not (genes is None or isinstance(genes, Iterable)):
            raise InvalidArgumentError(f"genes: expected names of genes, found {genes!r}.")
        chosen = self._ready().gene_names if genes is None else (genes,) if isinstance(genes, str) else tuple(genes)
        positions = [self._position(name) for name in dict.fromkeys(chosen)]
        if not positions:
            raise InvalidArgumentError("genes: expected one name or more, found none.")
        return positions
