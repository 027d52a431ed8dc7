# Fits of glmmTMB (every model, REML = FALSE and TRUE) and of lme4 (Poisson and binomial by glmer, Gaussian by lmer),
# and Satterthwaite's degrees of freedom of the latter by lmerTest: of each coefficient, and of all but the intercept.
#   Rscript tests/glmm/arrow/reference/fit.R
# Reads cells.csv, counts.csv and models.json of its folder, writes fits.json there.
suppressMessages({library(glmmTMB); library(lme4); library(lmerTest); library(jsonlite)})
here <- dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE)))
at <- function(file) file.path(here, file)
cells <- read.csv(at("cells.csv"), stringsAsFactors = TRUE)
counts <- read.csv(at("counts.csv"), check.names = FALSE)
models <- read_json(at("models.json"))
control <- glmmTMBControl(optCtrl = list(rel.tol = 1e-15, x.tol = 0, iter.max = 1e4, eval.max = 1e4))
with_offset <- c("nbinom2", "poisson")

formula_of <- function(model, tmb) {
  response <- if (model$family == "binomial") "cbind(y, trials - y)" else "y"
  random <- if (tmb) model$random else gsub("diag(1 + x | donor)", "(1 + x || donor)", model$random, fixed = TRUE)
  size <- if (model$family %in% with_offset) " + offset(log_size)" else ""
  as.formula(paste(response, "~", model$fixed, "+", random, size))
}

plain <- function(matrix) unname(as.matrix(matrix))

covariances <- function(terms) lapply(unclass(terms), function(v) {
  v <- plain(v); attributes(v) <- list(dim = dim(v)); v
})

# Covariance of the coefficients at fixed variance parameters: the inverse of the joint Hessian in (beta, u).
plugin <- function(fit) {
  env <- fit$obj$env
  hessian <- as.matrix(env$spHess(fit$fit$parfull, random = TRUE))
  scale <- 1 / sqrt(diag(hessian)) # precisions of effects run to infinity at a variance of zero
  fixed <- which(names(fit$fit$parfull)[env$random] == "beta")
  plain((solve(hessian * outer(scale, scale)) * outer(scale, scale))[fixed, fixed, drop = FALSE])
}

modes <- function(terms) lapply(terms[names(terms) != "cell"], function(t) { m <- as.matrix(t); list(levels = rownames(m), values = plain(m)) })

# Newton steps from where nlminb stopped (gradients there are up to 1e-3), while the gradient falls.
polish <- function(fit, reml) {
  par <- fit$fit$par
  for (i in 1:4) {
    gradient <- as.numeric(fit$obj$gr(par))
    step <- tryCatch(solve(optimHess(par, fit$obj$fn, fit$obj$gr), gradient), error = function(e) 0 * par)
    moved <- par - step
    if (max(abs(step)) < 0.1 && isTRUE(max(abs(fit$obj$gr(moved))) < max(abs(gradient)))) par <- moved
  }
  fit$fit$objective <- as.numeric(fit$obj$fn(par))
  fit$fit$par <- par
  fit$fit$parfull <- fit$obj$env$last.par
  fit$sdr <- suppressWarnings(TMB::sdreport(fit$obj, par, getJointPrecision = reml))
  fit
}

fit_tmb <- function(model, data, reml) {
  fit <- suppressWarnings(glmmTMB(formula_of(model, TRUE), family = model$family, data = data, REML = reml, control = control))
  fit <- polish(fit, reml)
  list(
    peer = "glmmTMB", reml = reml, log_likelihood = -fit$fit$objective,
    coefficients = unname(fixef(fit)$cond), names = names(fixef(fit)$cond), vcov = plain(vcov(fit)$cond),
    plugin = if (reml) plugin(fit) else NULL, covariances = covariances(VarCorr(fit)$cond), sigma = sigma(fit),
    modes = modes(ranef(fit)$cond), n_parameters = attr(logLik(fit), "df"), gradient = max(abs(fit$obj$gr(fit$fit$par)))
  )
}

degrees_of_freedom <- function(fit) {
  contrasts <- diag(length(fixef(fit)))
  each <- apply(contrasts, 1, function(row) lmerTest::contest1D(fit, row)$df)
  list(each = each, joint = lmerTest::contestMD(fit, contrasts[-1, ])$DenDF)
}

fit_lme4 <- function(model, data, reml) {
  formula <- formula_of(model, FALSE)
  fit <- suppressMessages(suppressWarnings(if (model$family == "gaussian") {
    lmerTest::lmer(formula, data, REML = reml, control = lmerControl(optimizer = "Nelder_Mead",
         optCtrl = list(FtolAbs = 1e-14, FtolRel = 1e-15, XtolRel = 1e-10, maxfun = 1e5)))
  } else {
    glmer(formula, data, family = model$family, control = glmerControl(optimizer = "bobyqa", tolPwrss = 1e-12,
          optCtrl = list(rhoend = 1e-9, maxfun = 1e5)))
  }))
  vcov_plain <- if (model$family == "gaussian") vcov(fit) else suppressWarnings(vcov(fit, use.hessian = FALSE))
  list(
    peer = "lme4", reml = reml, log_likelihood = as.numeric(logLik(fit)), coefficients = unname(fixef(fit)),
    names = names(fixef(fit)), vcov = plain(vcov_plain), plugin = plain(vcov_plain), covariances = covariances(VarCorr(fit)),
    sigma = sigma(fit), modes = modes(ranef(fit, condVar = FALSE)), n_parameters = attr(logLik(fit), "df"),
    df = if (model$family == "gaussian" && reml && !isSingular(fit)) degrees_of_freedom(fit) else NULL
  )
}

fits_of <- function(model) lapply(seq_len(model$genes) - 1, function(gene) {
  data <- cbind(cells, y = counts[[paste(model$name, gene, sep = ".")]])
  fits <- if (model$family == "gaussian") list() else lapply(c(FALSE, TRUE), function(reml) fit_tmb(model, data, reml))
  if (model$family == "gaussian") fits <- lapply(c(FALSE, TRUE), function(reml) fit_lme4(model, data, reml))
  if (model$family %in% c("poisson", "binomial")) fits <- c(fits, list(fit_lme4(model, data, FALSE)))
  fits
})

version <- function(package) as.character(packageVersion(package))
made <- list(
  versions = list(R = R.version.string, glmmTMB = version("glmmTMB"), lme4 = version("lme4"), lmerTest = version("lmerTest"), TMB = version("TMB")),
  models = lapply(models, function(model) c(model, list(fits = fits_of(model))))
)
write(toJSON(made, auto_unbox = TRUE, digits = 10, na = "null", null = "null", matrix = "rowmajor"), at("fits.json"))
